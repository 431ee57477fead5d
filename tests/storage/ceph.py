"""A real S3 store on this machine: Ceph's monitor, one storage daemon in memory, and its RADOS gateway.

Up in about ten seconds from Debian's ceph-mon, ceph-osd, radosgw and ceph-common. The daemons are children of this
process and are ended by their pids. Facts of Ceph 16: a pool of one copy must be allowed, a cluster of one host needs
`chooseleaf type 0`, and the gateway takes conditional puts (If-Match, If-None-Match).
"""

import os
import shutil
import socket
import subprocess
import time
import urllib.error
import urllib.request
import uuid
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

PROGRAMS = ("ceph", "ceph-authtool", "monmaptool", "ceph-mon", "ceph-osd", "radosgw", "radosgw-admin")
PACKAGES = "ceph-mon ceph-osd radosgw ceph-common"
_START_S = 120

_CONF = """
[global]
fsid = {fsid}
mon host = v2:127.0.0.1:{mon_port}
mon initial members = a
public addr = 127.0.0.1
cluster addr = 127.0.0.1
osd pool default size = 1
osd pool default min size = 1
osd pool default pg num = 4
osd crush chooseleaf type = 0
osd objectstore = memstore
memstore device bytes = 2147483648
mon max pg per osd = 1000
mon data avail crit = 1
run dir = {folder}
admin socket =
log file = {folder}/$name.log
pid file =
keyring = {folder}/keyring
mon data = {folder}/mon
osd data = {folder}/osd
rgw data = {folder}/rgw
rgw frontends = beast endpoint={host}:{port}
"""


def missing() -> list[str]:
    """The programs that are not installed."""
    return [name for name in PROGRAMS if shutil.which(name) is None]


@contextmanager
def gateway(folder: Path, users: dict[str, str], host: str = "127.0.0.1") -> Iterator[str]:
    """The endpoint of a new store in `folder` with `users` (access key to secret key), ended with the block. It listens
    at `host`, an address of this machine.

    Raises RuntimeError with the last words of what did not start.
    """
    for name in ("mon", "osd", "rgw"):
        (folder / name).mkdir(parents=True)
    port, mon_port = _free_ports(host, "127.0.0.1")
    fsid, osd = str(uuid.uuid4()), str(uuid.uuid4())
    (folder / "ceph.conf").write_text(_CONF.format(fsid=fsid, mon_port=mon_port, host=host, port=port, folder=folder))
    store = _Store(folder, dict(os.environ) | {"CEPH_CONF": str(folder / "ceph.conf")})
    keyring, monmap = str(folder / "keyring"), str(folder / "monmap")
    with ExitStack() as daemons:
        store.run("ceph-authtool", "--create-keyring", keyring, "--gen-key", "-n", "mon.", "--cap", "mon", "allow *")
        admin = ["-n", "client.admin", "--cap", "mon", "allow *", "--cap", "osd", "allow *"]
        store.run("ceph-authtool", keyring, "--gen-key", *admin)
        store.run("monmaptool", "--create", "--addv", "a", f"[v2:127.0.0.1:{mon_port}]", "--fsid", fsid, monmap)
        store.run("ceph-mon", "--mkfs", "-i", "a", "--monmap", monmap, "--keyring", keyring)
        daemons.enter_context(store.daemon("ceph-mon", "-i", "a"))
        store.run("ceph", "osd", "new", osd, "0")
        key = store.run("ceph", "auth", "get-or-create", "osd.0", "osd", "allow *", "mon", "allow profile osd")
        with open(keyring, "a") as file:
            file.write(key)
        store.run("ceph-osd", "-i", "0", "--mkfs", "--osd-uuid", osd)
        store.run("ceph", "osd", "crush", "add", "osd.0", "1.0", "host=localhost", "root=default")
        daemons.enter_context(store.daemon("ceph-osd", "-i", "0"))
        radosgw = daemons.enter_context(store.daemon("radosgw", "-n", "client.admin"))
        endpoint = f"http://{host}:{port}"
        _await_answer(endpoint, radosgw, folder)
        for access_key, secret_key in users.items():
            name = ["--uid", access_key, "--display-name", access_key]
            store.run("radosgw-admin", "user", "create", *name, "--access-key", access_key, "--secret-key", secret_key)
        yield endpoint


class _Store:
    def __init__(self, folder: Path, env: dict[str, str]):
        self._folder, self._env = folder, env

    def run(self, *command: str) -> str:
        """A program's standard output. Raises RuntimeError."""
        try:
            done = subprocess.run(command, env=self._env, capture_output=True, text=True, timeout=_START_S)
        except subprocess.TimeoutExpired:
            raise RuntimeError(f"{' '.join(command)}: no end after {_START_S} s; read the logs") from None
        if done.returncode:
            raise RuntimeError(f"{' '.join(command)}: {done.stderr[-1000:]}")
        return done.stdout

    @contextmanager
    def daemon(self, *command: str) -> Iterator[subprocess.Popen]:
        """A daemon that stays a child of this process."""
        with (self._folder / f"{command[0]}.out").open("wb") as output:
            process = subprocess.Popen([*command, "-f"], env=self._env, stdout=output, stderr=output)
        try:
            yield process
        finally:
            process.kill()  # everything is in memory: there is nothing to put in order
            process.wait()


def _free_ports(*hosts: str) -> list[int]:
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in hosts]
        for host, each in zip(hosts, sockets, strict=True):
            each.bind((host, 0))
        return [each.getsockname()[1] for each in sockets]


def _await_answer(endpoint: str, radosgw: subprocess.Popen, folder: Path) -> None:
    deadline = time.monotonic() + _START_S
    while time.monotonic() < deadline and radosgw.poll() is None:
        try:
            urllib.request.urlopen(endpoint, timeout=5).close()
            return
        except (urllib.error.URLError, OSError):
            time.sleep(0.2)
    raise RuntimeError(f"radosgw did not answer: {(folder / 'radosgw.out').read_text()[-1000:]}")
