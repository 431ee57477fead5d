"""Ctrl-C, SIGTERM and a full disk in the middle of a command: one line, and the same command completes."""

import os
import pty
import re
import shlex
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from small_run import end, make_corpus, num_commits, write_config

from tokenmill.pipeline.catalog.tables import Catalog

SAID_WITHIN_S = 2.5  # one second of it is our own patience; a loaded machine takes some, too


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_corpus(tmp_path_factory.mktemp("stopping") / "corpus")


class Command:
    """`python -m tokenmill WORDS` as a session of its own, in a terminal or off it; its output as it comes."""

    def __init__(self, *words: str, terminal: bool = False):
        read, write = pty.openpty() if terminal else os.pipe()
        self.process = subprocess.Popen(
            [sys.executable, "-m", "tokenmill", *words],
            stdin=subprocess.DEVNULL,
            stdout=write,
            stderr=write,
            start_new_session=not terminal,
            preexec_fn=(lambda: os.login_tty(write)) if terminal else None,
        )
        os.close(write)
        self.output, self._read = "", read
        self._thread = threading.Thread(target=self._listen, daemon=True)
        self._thread.start()

    def _listen(self) -> None:
        while True:
            try:
                data = os.read(self._read, 1 << 16)
            except OSError:  # the other side of a terminal is closed
                return
            if not data:
                return
            self.output += re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", data.decode(errors="replace")).replace("\r", "")

    def until(self, what: str, limit_s: float) -> float:
        """Seconds until `what` is said."""
        started = time.monotonic()
        while what not in self.output:
            assert time.monotonic() - started < limit_s, self.output[-2000:]
            time.sleep(0.02)
        return time.monotonic() - started

    def code(self) -> int:
        code = self.process.wait(60)
        self._thread.join(5)
        return code


def await_commit(command: Command, root: str) -> None:
    while not num_commits(root, "media"):
        assert command.process.poll() is None, command.output
        time.sleep(0.02)


def stopped(tmp_path: Path, corpus: Path, which: signal.Signals, terminal: bool, **cluster: int) -> Command:
    """A run that is stopped when it has committed something: what it says, and what is left of it."""
    root = str(tmp_path / "root")
    config = write_config(tmp_path, str(corpus), root, **cluster)
    command = Command("curate", str(config), terminal=terminal)
    try:
        await_commit(command, root)
        if terminal:
            os.write(command._read, b"\x03")  # as the key does: to the whole foreground
        else:
            os.kill(command.process.pid, which)
        assert command.until("To go on, run it again: ", 30) < SAID_WITHIN_S
        assert command.code() == 128 + which
    finally:
        end(command.process)
    assert f"{shlex.quote(sys.executable)} -m tokenmill curate {config}" in command.output.replace("\n", "")
    assert "Traceback" not in command.output and "stopped at" in command.output
    assert Path(root, "runs/lease").read_bytes() == b"", "the lease was given back"
    return command


def test_a_stopped_command_says_what_is_safe_and_how_to_go_on(tmp_path, corpus):
    command = stopped(tmp_path, corpus, signal.SIGTERM, terminal=False, local_rows=1000)
    assert "tokenmill: Ended by SIGTERM. What was committed stays" in command.output


@pytest.mark.slow
@pytest.mark.parametrize("local_rows", [1000, 0])  # worker processes; Ray
@pytest.mark.parametrize(
    ("which", "terminal"), [(signal.SIGINT, True), (signal.SIGINT, False), (signal.SIGTERM, False)]
)
def test_on_ray_and_in_a_terminal_too_and_the_same_command_completes(tmp_path, corpus, which, terminal, local_rows):
    command = stopped(tmp_path, corpus, which, terminal, local_rows=local_rows)
    assert {signal.SIGINT: "Interrupted.", signal.SIGTERM: "Ended by SIGTERM."}[which] in command.output
    done = Command("curate", str(tmp_path / "config.yaml"))
    assert done.code() == 0, done.output
    assert Catalog(str(tmp_path / "root")).media.scan(["uri"]).num_rows == 97


LIFE = """
import atexit, sys, time
from tokenmill.__main__ import main
sys.argv = ["tokenmill", "--help"]
atexit.register(lambda: (print("the last line", flush=True), time.sleep({sleep_s})))


class Begins:
    def find_spec(self, name, *_):
        if name == "tokenmill.pipeline.commands.cli":
            print("begins", flush=True)


sys.meta_path.insert(0, Begins())
main()
"""


def interrupted(after: str, delay_s: float = 0.0, sleep_s: float = 0.0) -> tuple[int, list[str], float]:
    """Exit code and stderr of a command that gets a SIGINT so long after it said something; how long it took."""
    code = LIFE.format(sleep_s=sleep_s)
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    started = time.monotonic()
    while after not in (line := process.stdout.readline()):
        assert line
        started = time.monotonic()
    time.sleep(delay_s)
    process.send_signal(signal.SIGINT)
    said = process.communicate(timeout=60)[1]
    return process.returncode, [line for line in said.splitlines() if line], time.monotonic() - started


def test_a_signal_at_any_moment_from_the_imports_on_is_one_line_and_130():
    *_, whole_s = interrupted("the last line")
    whole_s = max(0.2, whole_s)
    ended = [interrupted("begins", whole_s * moment / 12) for moment in range(15)]
    assert {code for code, *_ in ended} <= {0, 130} and ended[0][0] == ended[4][0] == 130, ended
    for code, said, _ in ended:
        assert len(said) == (code == 130) and all(line.startswith("tokenmill: Interrupted. ") for line in said), said


def test_a_signal_after_the_last_line_too():
    code, said, seconds = interrupted("the last line", 0.1, sleep_s=30)
    assert (code, len(said)) == (130, 1) and said[0].startswith("tokenmill: Interrupted. ") and seconds < 10


FULL = """
mount -t tmpfs -o size=160k tmpfs "$1" || exit 99
"$2" -m tokenmill curate "$3"; echo "code $?"
ls "$1"/root/runs/logs 2>/dev/null
mount -o remount,size=64m tmpfs "$1"
"$2" -m tokenmill curate "$3"; echo "code $?"
"""


@pytest.mark.slow
def test_a_full_disk_is_one_line_and_the_same_command_completes_when_there_is_space(tmp_path, corpus):
    disk = tmp_path / "disk"
    disk.mkdir()
    config = write_config(tmp_path, str(corpus), str(disk / "root"), local_rows=1000)
    script = ["unshare", "--mount", *([] if os.geteuid() == 0 else ["--map-root-user"]), "sh", "-c", FULL, "sh"]
    try:
        result = subprocess.run(
            [*script, str(disk), sys.executable, str(config)], capture_output=True, text=True, timeout=120
        )
    except FileNotFoundError:
        pytest.skip("no unshare(1)")
    if result.returncode in (1, 99) and "code" not in result.stdout:
        pytest.skip(f"no disk can be mounted here: {result.stderr.strip()}")
    assert result.stdout.count("code 1\n") == 1 and result.stdout.endswith("code 0\n"), result.stdout + result.stderr
    (said,) = result.stderr.splitlines()
    assert said.startswith("tokenmill: ") and str(disk / "root") in said
    assert "o space" in said and "make space, then run the same command again to continue" in said
