"""benchmarks/gpu.py: all parts run in small on a CPU; what is done is not done again, what did not run is said."""

import json

import gpu
import gpu_vision
import pytest


@pytest.fixture
def machine() -> gpu.Machine:
    return gpu.Machine.here(is_small=True)


def test_all_parts_run_in_small_and_once(tmp_path):
    gpu.main(["--small", "--out", str(tmp_path)])
    found = {part: json.loads((tmp_path / f"{part}.json").read_text()) for part in gpu.PARTS}
    assert {part: (each["status"], each["why"]) for part, each in found.items()} == dict.fromkeys(found, ("done", ""))
    rows = (tmp_path / "rows.md").read_text()
    for part, each in found.items():
        assert f"| {part} | " in rows
        assert any({"ours", "base"} <= set(figure) for figure in each["figures"]) or part == "long"
    verdicts = [figure["verdict"] for each in found.values() for figure in each["figures"] if "verdict" in figure]
    assert verdicts == ["met"] * 4
    times = {path.name: path.stat().st_mtime_ns for path in tmp_path.glob("*.json")}
    gpu.main(["--small", "--out", str(tmp_path)])
    assert {path.name: path.stat().st_mtime_ns for path in tmp_path.glob("*.json")} == times


def test_a_part_of_another_commit_is_done_again(tmp_path, machine, monkeypatch):
    monkeypatch.setitem(gpu.PARTS, "stills", lambda small, tell: tell("it", ours=2.0, base=1.0))
    gpu.run_part("stills", tmp_path, machine)
    assert gpu.is_done("stills", tmp_path, machine)
    assert not gpu.is_done("stills", tmp_path, gpu.Machine(machine.device, machine.driver, "another", True))
    assert "| stills | it | 2 | 1 | 2 |  |" in gpu.rows(tmp_path, machine)


def test_a_part_that_takes_too_long_is_stopped_and_said(tmp_path, machine):
    gpu.run_apart("stills", tmp_path, machine, box_s=0.3)
    assert not gpu.is_done("stills", tmp_path, machine)
    assert "| stills | stopped | | | | stopped after its 0 s |" in gpu.rows(tmp_path, machine)


def test_why_a_part_does_not_run_stands_in_its_row(tmp_path, machine, monkeypatch):
    def cannot(small, tell):
        tell("first", ours=1.0, base=float("nan"))
        raise gpu_vision.CannotRun("no such thing here")

    def fails(small, tell):
        raise ValueError("a broken thing")

    monkeypatch.setitem(gpu.PARTS, "stills", cannot)
    monkeypatch.setitem(gpu.PARTS, "clips", fails)
    for part in ("stills", "clips"):
        gpu.run_part(part, tmp_path, machine)
    rows = gpu.rows(tmp_path, machine)
    assert "| stills | first | 1 | unknown |  |  |" in rows
    assert "| stills | cannot run | | | | no such thing here |" in rows
    assert "| clips | failed | | | | ValueError: a broken thing |" in rows
    assert gpu.is_done("stills", tmp_path, machine) and not gpu.is_done("clips", tmp_path, machine)
