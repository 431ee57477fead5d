"""A medium that hangs its decoder ends the process, from outside the interpreter; one that shows life does not."""

import subprocess
import sys
import textwrap
import time

HANG = """
import ctypes, time
from tokenmill.stages.table import limits
limits.set_limits(limits.Limits({limit}))
with limits.medium():
    {body}
print("done")
"""


def run(limit: float | None, body: str) -> tuple[int, str, float]:
    start = time.monotonic()
    script = HANG.format(limit=limit, body=textwrap.dedent(body).replace("\n", "\n    "))
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60)
    return done.returncode, done.stdout, time.monotonic() - start


def test_a_hang_that_holds_the_interpreter_lock_is_ended():
    code, out, seconds = run(1.0, "ctypes.PyDLL(None).sleep(30)")
    assert code != 0 and not out
    assert seconds < 20


def test_signs_of_life_renew_the_limit():
    code, out, _ = run(1.0, "for _ in range(8):\n    time.sleep(0.3)\n    limits.beat()")
    assert (code, out) == (0, "done\n")


def test_nothing_is_limited_between_media():
    after = HANG.format(limit=0.5, body="pass") + "time.sleep(1.5)\nprint('alive')"
    done = subprocess.run([sys.executable, "-c", after], capture_output=True, text=True, timeout=60)
    assert done.stdout == "done\nalive\n"
    assert run(None, "time.sleep(1.5)")[:2] == (0, "done\n")
