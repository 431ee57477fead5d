"""The ports of a Ray that was started here: none can be reached from another machine."""

import ipaddress
import subprocess
import sys

CODE = """
import os, time
from pathlib import Path
from tokenmill.pipeline.config import Cluster
from tokenmill.pipeline.run.workers import Workers

with Workers(Cluster(num_cpus=1)) as workers:
    workers.start_ray()
    import ray
    actor = ray.remote(num_cpus=0)(type("Actor", (), {"pid": lambda self: os.getpid()})).remote()
    assert ray.get(actor.pid.remote())
    parents = {int(p.name): int(p.joinpath("stat").read_text().rpartition(")")[2].split()[1])
               for p in Path("/proc").iterdir() if p.name.isdigit() and p.joinpath("stat").exists()}
    mine = {os.getpid()}
    while more := {pid for pid, parent in parents.items() if parent in mine} - mine:
        mine |= more
    inodes = set()
    for pid in mine:
        for link in Path(f"/proc/{pid}/fd").glob("*"):
            try:
                inodes.add(os.readlink(link))
            except OSError:
                pass
    for table in ("tcp", "tcp6"):
        for line in Path(f"/proc/net/{table}").read_text().splitlines()[1:]:
            fields = line.split()
            if fields[3] == "0A" and f"socket:[{fields[9]}]" in inodes:
                words = fields[1].split(":")[0]
                parts = [bytes.fromhex(words[i:i + 8])[::-1] for i in range(0, len(words), 8)]
                print("LISTENS", b"".join(parts).hex())
"""


def test_ray_listens_on_loopback_only(local_ray):
    done = subprocess.run([sys.executable, "-c", CODE], capture_output=True, text=True, timeout=180)
    addresses = [ipaddress.ip_address(bytes.fromhex(line.split()[1])) for line in done.stdout.splitlines()]
    assert addresses, done.stdout + done.stderr
    for address in addresses:
        mapped = getattr(address, "ipv4_mapped", None)
        assert (mapped or address).is_loopback, f"{address} can be reached from other machines"
