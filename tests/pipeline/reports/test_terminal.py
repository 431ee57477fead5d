"""Live progress: how far at once, rate and time left only once they mean something."""

import io
import time

import pyarrow as pa
import pytest
from rich.console import Console

from tokenmill.pipeline.reports import terminal
from tokenmill.pipeline.reports.events import EventConsole
from tokenmill.pipeline.reports.terminal import Meter, PhaseReport


@pytest.fixture
def clock(monkeypatch):
    """A clock that stands until it is told to go on."""
    now = [100.0]
    monkeypatch.setattr(terminal.time, "monotonic", lambda: now[0])
    monkeypatch.setattr(terminal, "_PLAIN_EVERY_S", 0.0)
    monkeypatch.setattr(terminal, "_LOOK_S", 1e9)
    return now


def lines(console: Console) -> list[str]:
    return [line.strip() for line in console.file.getvalue().splitlines()]  # type: ignore[attr-defined]


def test_the_start_of_workers_is_no_rate(clock):
    console = Console(file=io.StringIO(), width=200)
    with Meter(console, PhaseReport("train"), 1000, "steps") as meter:
        clock[0] += 60  # workers start, the first step warms up
        meter.at(1, "loss 8.5")
        clock[0] += 1
        meter.at(3, "loss 8.4")
        clock[0] += 9
        meter.at(21, "loss 8.3")
    assert lines(console) == [
        "train: 1/1000 steps  loss 8.5",
        "train: 3/1000 steps  loss 8.4",
        "train: 21/1000 steps  2.0/s  loss 8.3  left 490 s",
    ]


def test_files_of_many_media_are_counted_as_files(clock):
    console = Console(file=io.StringIO(), width=200)
    with Meter(console, PhaseReport("curate"), 4, "files") as meter:
        clock[0] += 10
        meter.unpacked(100, 0)
        meter.at(100, "kept 90")
        clock[0] += 10
        meter.unpacked(200, 0)
        meter.at(300, "kept 280")
        clock[0] += 10
        meter.unpacked(100, 2)
        meter.at(400, "kept 370")
    assert lines(console) == [
        "curate: 100 media of 0/4 files  kept 90",
        "curate: 300 media of 0/4 files  20.0/s  kept 280",
        "curate: 400 media of 2/4 files  15.0/s  kept 370  left 30 s",
    ]


def keys(*reasons: str | None) -> pa.Table:
    return pa.table({"reject_reason": pa.array(reasons, pa.string()), "is_fresh": [True] * len(reasons)})


def test_verdicts_are_told_as_rows_arrive_and_what_of_them_is_written(clock):
    console = Console(file=io.StringIO(), width=200)
    with pytest.raises(OSError), Meter(console, PhaseReport("curate"), 40, "files") as meter:
        meter.judged({None: 9, "sharp": 1})
        meter.arrived(10)
        clock[0] += 5
        meter.judged({None: 8, "sharp": 1, "corrupt": 1})
        meter.arrived(10)
        meter.settled(keys(*[None] * 17, "sharp", "sharp", "corrupt"))
        clock[0] += 5
        meter.judged({None: 10})
        meter.arrived(10)
        raise OSError
    assert lines(console) == [
        "curate: 10/40 files  kept 9, rejected 1, unwritten 10",
        "curate: 20/40 files  2.0/s  kept 17, rejected 3, unwritten 20  left 10 s",
        "curate: 20/40 files  2.0/s  kept 17, rejected 3  left 10 s",
        "curate: 30/40 files  2.0/s  kept 27, rejected 3, unwritten 10  left 5 s",
        "curate: stopped at 30/40 files  2.0/s  kept 27, rejected 3, unwritten 10  left 5 s",
    ]


def said_at(monkeypatch, seconds: list[float], console: Console) -> list[str]:
    """What is said off a terminal of a phase with a result at each of these seconds."""
    now = [0.0]
    monkeypatch.setattr(terminal.time, "monotonic", lambda: now[0])
    monkeypatch.setattr(terminal, "_LOOK_S", 1e9)
    with Meter(console, PhaseReport("curate"), 1000, "files") as meter:
        for second in seconds:
            now[0] = second
            meter.judged({None: 1, "sharp": 1})
            meter.arrived(2)
    return lines(console)


def test_a_line_soon_and_then_every_half_minute(monkeypatch):
    every_second = [float(second) for second in range(1, 91)]
    said = said_at(monkeypatch, every_second, Console(file=io.StringIO(), width=200))
    assert said == [
        "curate: 10/1000 files  2.0/s  kept 5, rejected 5, unwritten 10  left 495 s",
        "curate: 70/1000 files  2.0/s  kept 35, rejected 35, unwritten 70  left 465 s",
        "curate: 130/1000 files  2.0/s  kept 65, rejected 65, unwritten 130  left 435 s",
    ]
    events = said_at(monkeypatch, every_second, EventConsole(file=io.StringIO()))
    assert len(events) == 18, "programs hear every five seconds"


def test_a_phase_without_results_says_where_it_is(monkeypatch):
    for name in ("_PLAIN_EVERY_S", "_LOOK_S"):
        monkeypatch.setattr(terminal, name, 0.05)
    console = Console(file=io.StringIO(), width=200)
    with Meter(console, PhaseReport("curate"), 40, "files"):
        for _ in range(100):
            if "0/40 files" in console.file.getvalue():  # type: ignore[attr-defined]
                break
            time.sleep(0.05)
    assert "curate: 0/40 files" in lines(console)
