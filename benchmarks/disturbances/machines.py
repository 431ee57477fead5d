"""A Ray cluster of several nodes as processes of this machine, whose workers and nodes can be killed."""

import os
import random
import signal
import subprocess

from ray.cluster_utils import Cluster

STORE_BYTES = 100 << 20
VARIABLES = {"RAY_AUTH_MODE": "disabled", "RAY_USAGE_STATS_ENABLED": "0"}  # to stand in the environment before


class Machines:
    """A cluster of a head and two more nodes, each with a CPU. Set RAY_TMPDIR to a folder of its own, with a short path
    because sockets stand in it, so that nothing else on this machine joins.
    """

    def __init__(self, chance: random.Random):
        self._chance = chance
        self.cluster = Cluster(initialize_head=True, head_node_args=self._node | {"include_dashboard": False})
        for _ in range(2):
            self.cluster.add_node(**self._node)

    _node = {"num_cpus": 1, "object_store_memory": STORE_BYTES}

    def kill_worker(self, title: str) -> bool:
        """Kill -9 a worker process whose title contains `title`; false when there is none.

        Not a raylet's agents: it dies with them, and on the head the driver with it.
        """
        nodes = self.cluster.list_all_nodes()
        raylets = {info.process.pid for node in nodes for info in node.all_processes.get("raylet", [])}
        listed = subprocess.run(["ps", "-axo", "pid=,ppid=,command="], capture_output=True, text=True).stdout
        lines = [line.split(None, 2) for line in listed.splitlines()]
        workers = [(int(pid), str(command)) for pid, parent, *command in lines if int(parent) in raylets]
        found = sorted(pid for pid, command in workers if title in command and "Agent" not in command)
        if found:
            os.kill(self._chance.choice(found), signal.SIGKILL)
        return bool(found)

    def replace_node(self) -> None:
        """A machine dies with its raylet and its workers; a new one comes."""
        node = self._chance.choice(sorted(self.cluster.worker_nodes, key=lambda node: node.unique_id))
        self.cluster.remove_node(node, allow_graceful=False)
        self.cluster.add_node(**self._node)
