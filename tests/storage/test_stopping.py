"""A first signal is an interrupt, its echo none, and a second one ends the process where it stands."""

import os
import signal
import subprocess
import sys
import time

import pytest

SCRIPT = """
import time
from tokenmill.storage.stopping import Stop, kept
import signal
stop = Stop(lambda which: print("said", which.name, flush=True))
with stop.listening():
    with kept():
        signal.signal(signal.SIGTERM, lambda *_: print("taken over", flush=True))
    try:
        print("ready", flush=True)
        time.sleep(60)
    except KeyboardInterrupt:
        print("interrupted", flush=True)
    time.sleep(60)
"""


@pytest.mark.parametrize("which", [signal.SIGINT, signal.SIGTERM, signal.SIGUSR1])
def test_the_first_interrupts_and_a_second_ends_at_once(which):
    with subprocess.Popen([sys.executable, "-c", SCRIPT], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        os.kill(process.pid, which)
        assert process.stdout.readline() == "interrupted\n"
        os.kill(process.pid, which)  # as timeout(1) sends it, to the process and to its group
        assert process.stdout.readline() == f"said {which.name}\n", "without waiting for the end"
        time.sleep(0.3)
        os.kill(process.pid, which)
        assert process.wait(5) == 128 + which
