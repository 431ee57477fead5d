"""Definitions of failures and of reasons -> docs/errors.md, the page of what fails and what to do.

Made by `python -m tokenmill.pipeline.commands.trouble > docs/errors.md`.
"""

import re

from tokenmill.pipeline.commands.ending import BUG, BUG_ASKS, BUG_SAYS, FAILED
from tokenmill.pipeline.commands.interrupted import INTERRUPTED
from tokenmill.stages import REASONS
from tokenmill.storage.failures import FAILURES

_HEAD = """# When something fails

Made by `python -m tokenmill.pipeline.commands.trouble` from the definitions in `storage/failures.py` and
`stages/table/reasons.py`.

A command that cannot work says so before it starts, in one message that names the file or key and the next action. A
file that cannot be used is a rejected row, never a crash. Whatever ends a command, `kill -9` and a power cut included,
loses nothing that was committed: run the same command again.

| exit code | |
| --- | --- |
| 0 | done |
| {failed} | a message says what is wrong and what to do |
| 2 | the command line is wrong |
| {bug} | a bug of tokenmill |
| 130, 143 | ended by Ctrl-C, by SIGTERM (Slurm, Kubernetes, `kill`) |

## Messages

One line says what, where and what to do next; the traceback is in a file that it names, in `ROOT/runs/logs` where that
can be written, else in the temporary folder. Keys, tokens and passwords are taken out of both.

| message | what to do |
| --- | --- |
"""
_MIDDLE = """
A second run on the same root is refused with the name of the first; the lease of a dead one is taken over at once on
the same machine, and after 30 s from another. A second Ctrl-C ends a command at once. A store that fails again and
again, a full disk and a lack of memory stop the run and reject nothing.

## Reasons of rejected rows

`tokenmill status CONFIG` counts reasons, `tokenmill show CONFIG URI` tells one file's, `tokenmill sheet CONFIG --reason
REASON` draws them. Your own rules are reasons by their names; the others are these.

| reason | what happened |
| --- | --- |
"""


def page() -> str:
    """The page, as Markdown."""
    says = [(failure.what, failure.do) for failure in FAILURES.values()]
    says += [
        (f"{BUG_SAYS}: ERROR", f"{BUG_ASKS}: LOG"),
        (f"Interrupted. / Ended by SIGTERM. {INTERRUPTED}: COMMAND", ""),
    ]
    lines = [_HEAD.format(failed=FAILED, bug=BUG)]
    lines += [f"| {_cell(what)} | {_cell(do)} |\n" for what, do in says]
    lines += [_MIDDLE, *(f"| `{reason}` | {_cell(what)} |\n" for reason, what in REASONS.items())]
    return "".join(lines)


def _cell(text: str) -> str:
    return re.sub(r"{(\w+)}", lambda match: match[1].upper(), text).replace("|", "\\|")


if __name__ == "__main__":
    print(page(), end="")
