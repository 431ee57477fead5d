"""A phase without a result says so, and what it waits for; twice as late each time."""

import io
import time

from rich.console import Console

from tokenmill.pipeline.flow.stalled import watched
from tokenmill.pipeline.reports.terminal import Meter, PhaseReport


def test_silence_is_told_and_a_result_ends_it():
    console = Console(file=io.StringIO(), width=200)
    with Meter(console, PhaseReport("curate"), 9, "files") as meter:
        with watched(meter, 0.3, lambda: "Read waits for a disk"):
            time.sleep(0.8)
            early = list(meter.report.notes)
            meter.arrived(1)
            time.sleep(0.15)
            assert meter.report.notes == early
        assert early and len(early) <= 2
        assert all(note.startswith("no result for ") and note.endswith("; Read waits for a disk") for note in early)


def test_progress_is_told_to_observers():
    console, seen = Console(file=io.StringIO()), []
    with Meter(console, PhaseReport("curate"), 9, "files", [seen.append]) as meter:
        meter.judged({None: 2, "corrupt": 1})
        meter.arrived(3)
        meter.lost(1)
        meter.at(5, "half", {"loss": 2.5})
    assert (seen[0].done, seen[0].num_kept, seen[0].rejected, seen[0].unwritten) == (3, 2, {"corrupt": 1}, 3)
    assert seen[-1].numbers == {"loss": 2.5} and seen[-1].num_lost == 1 and "5/9 files" in seen[-1].line
