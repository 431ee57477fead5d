"""What is said when a signal ends a command: what is safe, and the command to go on with. Imports next to nothing, for
it may be said while the rest is imported.
"""

import shlex
import shutil
import signal
import sys
from pathlib import Path

INTERRUPTED = (
    "What was committed stays, and of a training its newest checkpoint; the workers end. To go on, run it again"
)


def say_interrupted(which: signal.Signals) -> None:
    """One line on stderr."""
    from tokenmill.storage.failure_log import redacted

    how = "Interrupted." if which == signal.SIGINT else f"Ended by {which.name}."
    print(redacted(f"\ntokenmill: {how} {INTERRUPTED}: {typed_command()}"), file=sys.stderr, flush=True)


def typed_command() -> str:
    """What was typed, as a shell takes it, without keys."""
    from tokenmill.storage.failure_log import redacted

    name, *arguments = sys.argv
    if Path(name).name == "__main__.py":
        name = f"{shlex.quote(sys.executable)} -m tokenmill"
    elif shutil.which(Path(name).name) == name:
        name = Path(name).name
    return redacted(f"{name} {shlex.join(arguments)}")
