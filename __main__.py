"""The command `tokenmill`, also as `python -m tokenmill`: a signal is one line and an exit code, from the imports on to
the end of the process.
"""

from tokenmill.pipeline.commands.interrupted import say_interrupted
from tokenmill.storage.stopping import Stop, leave


def main() -> None:
    """Run the command line and end this process."""
    stop = Stop(say_interrupted)
    try:
        with stop.listening():
            from tokenmill.pipeline.commands import cli, ending

            code = ending.code_of(cli.app, stop)
            stop.is_over = True
            leave(code)
    except BaseException:
        if stop.received is None:
            raise
        stop.tell()
        leave(128 + stop.received)


if __name__ == "__main__":
    main()
