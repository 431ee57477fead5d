"""`tokenmill` whose `run` ends before the training; with `--serve`, one process that runs config after config.

A server reads lines: the path of a config, a tab, the folder for temporary files. It answers each with a line of JSON:
the seconds of the run and what its phases read, or the traceback of what ended it.
"""

import json
import os
import sys
import tempfile
import time
import traceback

import tokenmill

PHASES = ("curate", "caption", "tokenize")


def serve() -> None:
    """Until stdin ends. Whatever else is printed goes to stderr: Ray prints at times."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    for line in sys.stdin:
        started = time.monotonic()
        config, tempfile.tempdir = line.rstrip("\n").split("\t")
        try:
            reports = tokenmill.run(tokenmill.load_config(config), PHASES, quiet=True)
            answer = {"seconds": time.monotonic() - started, "read": [report.num_read for report in reports]}
        except Exception:
            answer = {"error": traceback.format_exc()}
        print(json.dumps(answer), file=answers, flush=True)


def shift_clock() -> None:
    """The driver's modules of tokenmill that ask `datetime` for the time get the clock that jumps."""
    from sitecustomize import Datetime  # type: ignore[import-not-found]

    from tokenmill.pipeline.catalog import lease
    from tokenmill.storage import failure_log, failures

    for module in (lease, failure_log, failures):
        module.datetime = Datetime  # type: ignore[attr-defined]


if __name__ == "__main__":
    tokenmill.PHASES = PHASES
    if os.environ.get("TOKENMILL_CHAOS_CLOCK"):
        shift_clock()
    if sys.argv[1:] == ["--serve"]:
        serve()
    else:
        from tokenmill.__main__ import main

        main()
