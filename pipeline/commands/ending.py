"""Whatever ends a command -> one line that says what, where and what to do next, and an exit code.

What a person can mend (UserError) is said as it is; what is no bug (storage/failures.py) in the words of its
definition; all else is a bug of tokenmill and says so. The traceback of the last two is kept in a file that the line
names.
"""

import signal
from collections.abc import Callable
from pathlib import Path

from rich.console import Console

from tokenmill.pipeline.commands import options
from tokenmill.pipeline.commands.interrupted import say_interrupted, typed_command
from tokenmill.pipeline.reports.events import EventConsole
from tokenmill.storage.errors import UserError
from tokenmill.storage.failure_log import redacted, write_log
from tokenmill.storage.failures import find, line
from tokenmill.storage.stopping import Stop

FAILED, BUG = 1, 70  # the latter is EX_SOFTWARE of sysexits.h
BUG_SAYS = "This is a bug of tokenmill, not of your data"
BUG_ASKS = "please report it with the command and this log, which holds a traceback and versions, no media and no keys"


def code_of(command: Callable[[], object], stop: Stop | None = None) -> int:
    """Run `command` to its end, whichever; say on stderr how it ended, where that is no success; the exit code. `stop`
    hears of signals.
    """
    stop = stop or Stop(say_interrupted)
    with stop.listening():
        try:
            command()
            return 0
        except BaseException as error:
            if stop.received is not None:  # and whatever came of it: workers hear of a signal, too
                stop.tell()
                return 128 + stop.received
            return _code(error)


def _code(error: BaseException) -> int:
    code = error.code if isinstance(error, SystemExit) else None
    if isinstance(error, KeyboardInterrupt) or code == 128 + signal.SIGINT:  # of a library that took the signal
        say_interrupted(signal.SIGINT)
        return 128 + signal.SIGINT
    if isinstance(error, SystemExit):
        return code if isinstance(code, int) else int(code is not None)
    if isinstance(error, UserError):
        _say(f"tokenmill: {error}")
        return FAILED
    roots = [place for place in options.places if Path(place).is_dir()]
    log = write_log(error, typed_command(), [f"{root}/runs/logs" for root in roots])
    if found := find(error):
        where = f" (traceback: {log})" if log else ""
        _say(f"tokenmill: {line(*found, options.places, store=_store())}{where}")
        return FAILED
    words = " ".join(f"{type(error).__name__}: {error}".split())[:500]
    _say(f"tokenmill: {BUG_SAYS}: {words}; {BUG_ASKS}: {log or 'no disk takes it'}")
    return BUG


def _store() -> str:
    from tokenmill.storage.object_store import store  # imports pyarrow

    return store()


def _say(text: str) -> None:
    console = EventConsole(stderr=True) if isinstance(options.console, EventConsole) else Console(stderr=True)
    console.print(redacted(text), style="red", markup=False, highlight=False, soft_wrap=True)
