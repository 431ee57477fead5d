"""A Ray cluster of several nodes as processes of this machine, whose workers and nodes can be killed."""

import os
import random
import signal
import subprocess
from contextlib import suppress

from disturbances import processes
from ray.cluster_utils import Cluster

STORE_BYTES = 100 << 20
VARIABLES = {"RAY_AUTH_MODE": "disabled", "RAY_USAGE_STATS_ENABLED": "0"}  # to stand in the environment before


class Machines:
    """A cluster of a head and `num_nodes` more, each with a CPU, the head with `head_cpus`. Set RAY_TMPDIR to a folder
    of its own, with a short path because sockets stand in it, so that nothing else on this machine joins.
    """

    def __init__(self, chance: random.Random, num_nodes: int = 2, head_cpus: int = 1):
        self._chance = chance
        head = self._node | {"num_cpus": head_cpus, "include_dashboard": False}
        self.cluster = Cluster(initialize_head=True, head_node_args=head)
        for _ in range(num_nodes):
            self.add_node()

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

    def add_node(self) -> None:
        """A machine comes."""
        self.cluster.add_node(**self._node)

    def lose_nodes(self, count: int = 1) -> list[str]:
        """So many machines, not the head, die with all that runs on them; the command lines of that."""
        chosen = self._chance.sample(sorted(self.cluster.worker_nodes, key=lambda node: node.unique_id), count)
        died = [line for node in chosen for line in _kill(node)]
        for node in chosen:
            self.cluster.remove_node(node, allow_graceful=False)
        return died

    def replace_node(self) -> None:
        """A machine dies with its raylet and its workers; a new one comes."""
        self.lose_nodes()
        self.add_node()

    def lose_all(self) -> list[str]:
        """The head dies and the others with it; the command lines of what ran there."""
        died = [line for node in self.cluster.list_all_nodes() for line in _kill(node)]
        self.cluster.shutdown()
        return died


def _kill(node) -> list[str]:
    """What else it has of processes, the Cluster ends when the node is removed."""
    raylets = [each.process.pid for each in node.all_processes.get("raylet", [])]  # none, where it did not start
    pids = [pid for raylet in raylets for pid in processes.tree(raylet)]
    lines = [processes.command(pid) for pid in pids]
    for pid in pids:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    return lines
