"""`tokenmill status --watch`: the run at work on a root, from anywhere that reads it.

A run renews its lease every few seconds and writes there how far it is (pipeline/catalog/lease.py): nothing is asked of
its machine, and a run that died is one whose lease stands still.
"""

import time
from typing import Any

from rich.console import Console
from rich.live import Live
from rich.text import Text

from tokenmill.pipeline.catalog.lease import RENEW_S, STALE_S, at_work
from tokenmill.pipeline.reports.terminal import shown

_PLAIN_EVERY_S = 30.0


def watch(root: str, console: Console) -> None:
    """Show the run at work until none is: one line that changes on a terminal, elsewhere a line every half minute and
    at each new phase.
    """
    found = at_work(root)
    if found is None:
        console.print(f"{root}: no run is at work", highlight=False)
        return
    run_id = found["run_id"]
    console.print(_who(found), highlight=False)
    with Live(console=console, auto_refresh=False, transient=True) as live:
        told_at, phase = float("-inf"), None
        while found is not None and found["run_id"] == run_id:
            line = state(found)
            if console.is_terminal:
                live.update(Text.from_markup(line), refresh=True)
            elif time.monotonic() - told_at >= _PLAIN_EVERY_S or phase != _phase(found):
                told_at, phase = time.monotonic(), _phase(found)
                console.print(f"  {line}", highlight=False)
            time.sleep(RENEW_S / 2)
            found = at_work(root)
    console.print(f"Run {run_id} has ended; `tokenmill status` shows what it did", highlight=False)


def state(found: dict[str, Any]) -> str:
    """How far a run is, on one line, of what `at_work` found."""
    progress, silent_s = found["progress"], found["silent_s"]
    line = f"{progress['phase']}: {shown(progress['line'])}" if progress else "plans"
    if progress and progress["silent_s"] >= STALE_S:
        line += f"  no result for {progress['silent_s'] + silent_s:,.0f} s"
    if silent_s >= STALE_S:
        line += f"  silent for {silent_s:,.0f} s: it or its machine may be dead; the next run takes over"
    return line


def _who(found: dict[str, Any]) -> str:
    who = f"`tokenmill {found['command']}`, host {found['host']}, pid {found['pid']}, since {found['since']}"
    return f"Run {found['run_id']}: {who}"


def _phase(found: dict[str, Any]) -> str | None:
    return found["progress"] and found["progress"]["phase"]
