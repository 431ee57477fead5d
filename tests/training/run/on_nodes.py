"""Trains on a real Ray cluster of several raylets, which die and come while it does: python on_nodes.py FOLDER.

In FOLDER stands plan.pickle: (job, resources, CPUs of each machine, names of the machines at the start, events), each
event (steps that must be logged before it, a method of Machines, name of a machine). The driver is on a machine
without CPUs. Writes events.json, when each of them was and what it returned, and result.json.
"""

import json
import logging
import pickle
import subprocess
import sys
import threading
import time
from pathlib import Path

import ray
from ray._raylet import GcsClient
from ray.cluster_utils import Cluster
from ray.core.generated import autoscaler_pb2

from tokenmill.storage.run_log import read_log
from tokenmill.training.run.loop import fit


class Machines:
    """By name."""

    def __init__(self, num_cpus):
        self.num_cpus = num_cpus
        head = {"num_cpus": 0, "include_dashboard": False}
        self.cluster = Cluster(initialize_head=True, head_node_args=head, shutdown_at_exit=False)
        self.nodes = {}

    def add(self, name):
        self.nodes[name] = self.cluster.add_node(num_cpus=self.num_cpus, resources={name: 1}, wait=False)

    def kill(self, name):
        """As a machine whose power goes: its workers with it."""
        node = self.nodes.pop(name)
        workers = children(node.all_processes["raylet"][0].process.pid)
        node.kill_all_processes(check_alive=False, allow_graceful=False)
        subprocess.run(["kill", "-9", *map(str, workers)], stderr=subprocess.DEVNULL)

    def drain(self, name):
        """As a cloud takes a machine back, with a word ten seconds before."""
        node_id = next(node["NodeID"] for node in ray.nodes() if name in node["Resources"])
        reason = autoscaler_pb2.DrainNodeReason.Value("DRAIN_NODE_REASON_PREEMPTION")
        gcs = GcsClient(address=self.cluster.gcs_address)
        is_accepted, why = gcs.drain_node(node_id, reason, "a test", int((time.time() + 10) * 1000))
        assert is_accepted, why
        threading.Timer(10, self.kill, [name]).start()

    def count(self, _):
        """Workers of the training on each machine."""
        raylets = {name: node.all_processes["raylet"][0].process.pid for name, node in self.nodes.items()}
        return {name: sum(map(is_worker, children(pid))) for name, pid in raylets.items()}


def is_worker(pid):
    return b"RayTrainWorker" in Path(f"/proc/{pid}/cmdline").read_bytes()


def children(pid):
    found = []
    for entry in Path("/proc").iterdir():
        try:
            if entry.name.isdigit() and int((entry / "stat").read_text().rsplit(")", 1)[1].split()[1]) == pid:
                found += [int(entry.name), *children(int(entry.name))]
        except (FileNotFoundError, ProcessLookupError):
            continue
    return found


def main(folder):
    job, resources, num_cpus, names, events = pickle.loads((folder / "plan.pickle").read_bytes())
    machines = Machines(num_cpus)
    for name in names:
        machines.add(name)
    ray.init(address=machines.cluster.address, logging_level=logging.ERROR, log_to_driver=False)
    machines.cluster.wait_for_nodes()
    told = []

    def happen():
        for num_steps, what, name in events:
            while max((record["step"] for record in read_log(job.run_uri)), default=0) < num_steps:
                time.sleep(0.05)
            event = {"what": what, "name": name, "at_s": time.time(), "steps": len(read_log(job.run_uri))}
            told.append(event | {"found": getattr(machines, what)(name)})
            (folder / "events.json").write_text(json.dumps(told))

    threading.Thread(target=happen, daemon=True).start()
    seen = []
    try:
        result = fit(job, resources, lambda step, *_: seen.append((time.time(), step)))
        (folder / "result.json").write_text(json.dumps({"resumed_from": result.resumed_from, "seen": seen}))
    finally:
        ray.shutdown()
        machines.cluster.shutdown()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
