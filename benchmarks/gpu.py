"""What a GPU does for each part, beside its baseline: `python benchmarks/gpu.py --minutes 9`.

Every part is a process of its own with a share of the minutes; what it measured by then stands in FOLDER/PART.json,
and is kept if it is stopped. Called again, it does only parts that are not done at this commit on this device. At the
end FOLDER/rows.md has rows for RESULTS.md. A part that cannot run says why in its row.

    stills      512 px, the published size with random weights, in bf16 and fp32: beside transformers in batches and one
                by one, share of the matrix rate, codes equal to those of fp32, and of a CPU   gpu_vision.py
    clips       4x8x8, the same
    pictures    `tokenmill tokenize` on pictures from disk, beside the tokenizer alone
    scores      CLIP scores beside open_clip alone, the text detector beside rapidocr alone
    trainee     steps of the built-in tokenizer's training, compiled beside eager
    captions    engine transformers beside a plain loop, and vLLM where it is installed      gpu_language.py
    losses      a model's losses and gradients beside those of a CPU
    training    5,120 tokens, Emu3-8B's layers, as many as fit, 184,622 classes, beside a plain compiled loop; MFU
    long        131,072 tokens, a few such layers; MFU and peak memory
    drawing     guidance and cache, beside transformers' generate

`--small` is sizes for a CPU, in this process, and shows that every part runs: its figures say nothing.
Equal enough: at least 99 % of fp32's codes on the CPU (TF32 off), and losses within 1e-4 with
gradients of cosine 0.999, in bf16 within 2e-2 and 0.99.
"""

import argparse
import json
import os
import platform
import subprocess
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any

import gpu_language
import gpu_vision
import torch

from tokenmill.storage import cpu

SHARES = {  # of the time: the rest goes to those who come after
    gpu_vision.stills: 3,
    gpu_vision.clips: 2,
    gpu_vision.pictures: 2,
    gpu_vision.scores: 1,
    gpu_vision.trainee: 1,
    gpu_language.captions: 2,
    gpu_language.losses: 1,
    gpu_language.training: 4,
    gpu_language.long: 2,
    gpu_language.drawing: 2,
}
PARTS: dict[str, Callable[..., None]] = {part.__name__: part for part in SHARES}


@dataclass(frozen=True)
class Machine:
    """Where figures were measured, and of what."""

    device: str
    driver: str
    commit: str
    is_small: bool

    @classmethod
    def here(cls, is_small: bool) -> "Machine":
        device, driver = cpu.describe(), platform.release()
        if torch.cuda.is_available():
            device = torch.cuda.get_device_name()
            asked = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
            driver = told(asked).splitlines()[0] if told(asked) else "unknown"
            driver += f", CUDA {torch.version.cuda}"
        folder = str(Path(__file__).resolve().parent.parent)
        commit = told(["git", "-C", folder, "rev-parse", "--short", "HEAD"]) or "unknown"
        return cls(device, driver, commit, is_small)


def told(command: list[str]) -> str:
    """What a command prints; nothing where it is not there or fails."""
    try:
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return ""


@dataclass
class Result:
    """The file of a part: written anew with each figure, so that a part that is stopped leaves what it had."""

    path: Path
    content: dict[str, Any]

    @classmethod
    def begun(cls, folder: Path, part: str, machine: Machine) -> "Result":
        made = cls(folder / f"{part}.json", vars(machine) | {"part": part, "status": "stopped", "figures": []})
        made.write()
        return made

    def write(self) -> None:
        aside = self.path.with_suffix(".tmp")
        aside.write_text(json.dumps(self.content, indent=1))
        aside.replace(self.path)

    def tell(self, what: str, **figures: float | str) -> None:
        """`ours`, `base` and what else was measured; no number where something is not known."""
        figures = {name: "unknown" if value != value else value for name, value in figures.items()}
        if isinstance(ours := figures.get("ours"), float) and isinstance(base := figures.get("base"), float):
            figures["ratio"] = ours / base
        self.content["figures"].append({"what": what} | figures)
        self.write()
        shown = ", ".join(f"{name} {shorter(value)}" for name, value in figures.items())
        print(f"{self.content['part']}: {what}: {shown}", flush=True)

    def end(self, status: str, seconds: float, why: str = "") -> None:
        self.content |= {"status": status, "why": why, "seconds": round(seconds, 1)}
        self.write()


def shorter(value: float | str) -> str:
    if isinstance(value, str):
        return value
    return f"{value:,.0f}" if value >= 1000 else f"{value:.4g}"


def run_part(part: str, folder: Path, machine: Machine) -> None:
    """Here, in this process."""
    result, started = Result.begun(folder, part, machine), time.monotonic()
    try:
        PARTS[part](machine.is_small, result.tell)
        result.end("done", time.monotonic() - started)
    except gpu_vision.CannotRun as error:
        result.end("cannot run", time.monotonic() - started, str(error))
    except Exception as error:
        traceback.print_exc()
        said = (str(error).strip() or "no words").splitlines()[0]
        result.end("failed", time.monotonic() - started, f"{type(error).__name__}: {said}")


def run_apart(part: str, folder: Path, machine: Machine, box_s: float) -> None:
    """In a process of its own, ended after `box_s` seconds."""
    started = time.monotonic()
    command = [sys.executable, __file__, "--part", part, "--out", str(folder)]
    command += ["--small"] if machine.is_small else []
    process = subprocess.Popen(command, start_new_session=True)
    try:
        code = process.wait(box_s)
        why = f"its process ended with {code}"
    except subprocess.TimeoutExpired:
        why = f"stopped after its {box_s:.0f} s"
        os.killpg(process.pid, 9)
        process.wait()
    path = folder / f"{part}.json"
    content = json.loads(path.read_text()) if path.exists() else {}
    if content.get("status") in (None, "stopped"):
        result = Result(path, content) if content else Result.begun(folder, part, machine)
        result.end("stopped", time.monotonic() - started, why)


def is_done(part: str, folder: Path, machine: Machine) -> bool:
    path = folder / f"{part}.json"
    found = json.loads(path.read_text()) if path.exists() else {}
    return found.get("status") in ("done", "cannot run") and vars(machine).items() <= found.items()


def rows(folder: Path, machine: Machine) -> str:
    """Of all parts that stand in the folder, for RESULTS.md."""
    head = f"{date.today()}, {machine.device}, driver {machine.driver}, commit {machine.commit}"
    lines = [f"## On a GPU, {head}", "", "`python benchmarks/gpu.py`" + (", small" if machine.is_small else ""), ""]
    lines += ["| part | what | ours | baseline | ratio | more |", "| --- | --- | --- | --- | --- | --- |"]
    for part in PARTS:
        path = folder / f"{part}.json"
        found = json.loads(path.read_text()) if path.exists() else {"status": "not begun", "figures": []}
        for figure in found["figures"]:
            main = [shorter(figure[name]) if name in figure else "" for name in ("ours", "base", "ratio")]
            rest = {name: value for name, value in figure.items() if name not in ("what", "ours", "base", "ratio")}
            more = ", ".join(f"{name} {shorter(value)}" for name, value in rest.items())
            lines.append("| " + " | ".join([part, figure["what"], *main, more]) + " |")
        if found["status"] != "done":
            lines.append(f"| {part} | {found['status']} | | | | {found.get('why', '')} |")
    return "\n".join(lines) + "\n"


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=9.0, help="for all parts together")
    parser.add_argument("--out", type=Path, default=Path("build/gpu"), help="folder of the results")
    parser.add_argument("--only", nargs="*", choices=list(PARTS), default=list(PARTS))
    parser.add_argument("--again", action="store_true", help="parts that are done, too")
    parser.add_argument(
        "--small", action="store_true", help="sizes for a CPU, one part after the other in this process"
    )
    parser.add_argument("--part", choices=list(PARTS), help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    machine, folder = Machine.here(options.small), options.out
    folder.mkdir(parents=True, exist_ok=True)
    if options.part:
        run_part(options.part, folder, machine)
        return
    if not options.small and not torch.cuda.is_available():
        raise SystemExit("torch finds no GPU here; look at nvidia-smi, or give --small, which shows that all parts run")
    todo = [part for part in options.only if options.again or not is_done(part, folder, machine)]
    ends = time.monotonic() + options.minutes * 60
    for number, part in enumerate(todo):
        if options.small:
            run_part(part, folder, machine)
        else:
            shares = [SHARES[PARTS[each]] for each in todo[number:]]
            run_apart(part, folder, machine, max(1.0, ends - time.monotonic()) * shares[0] / sum(shares))
        (folder / "rows.md").write_text(rows(folder, machine))
    (folder / "rows.md").write_text(rows(folder, machine))
    print(f"{folder / 'rows.md'}: rows for RESULTS.md")


if __name__ == "__main__":
    main()
