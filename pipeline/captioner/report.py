"""The verdict on a trained captioner -> figures.json, and held_out.png: pictures, the true and the written captions; of
what only reads held_out.jsonl.
"""

import json
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console

from tokenmill import storage
from tokenmill.pipeline.captioner.job import Job
from tokenmill.pipeline.captioner.judge import Verdict
from tokenmill.pipeline.reports.sheet import Picture, SheetSection, contact_sheet, image_grid
from tokenmill.pipeline.reports.terminal import table
from tokenmill.tokenizer.geometry import resize

FIGURES = "figures.json"  # written last: trained and judged
_SHEET, _LINES = "held_out.png", "held_out.jsonl"
_SHOWN = 32
_MOST_PX = 256
_FRAMES = 4  # of a clip
_NAMES = {
    "exact": ("the true caption, word for word", ".1%"),
    "cider": ("CIDEr-D, of 10", ".2f"),
    "clip_written": ("CLIP: picture and written caption", ".3f"),
    "clip_true": ("CLIP: picture and true caption", ".3f"),
}


def write(found: Verdict, uri: str, job: Job) -> None:
    """Both files into the folder or s3:// prefix `uri`."""
    if job.names:
        lines = [
            json.dumps({"asked": example.prompt, "written": text, "true": example.caption}, ensure_ascii=False) + "\n"
            for example, text in zip(found.examples, found.written, strict=True)
        ]
        storage.write_bytes(storage.join(uri, _LINES), "".join(lines).encode("utf-8", "backslashreplace"))
    elif found.examples:
        with tempfile.TemporaryDirectory(prefix="tokenmill-") as folder:
            local = Path(folder) / _SHEET
            contact_sheet([SheetSection("Held-out media: what it wrote, and the true caption", _shown(found))], local)
            storage.write_bytes(storage.join(uri, _SHEET), local.read_bytes())
    counts = {"trained_on": job.num_pairs, "held_out": job.num_held_out}
    storage.write_json(storage.join(uri, FIGURES), {"key": job.key, **counts, **found.figures, "notes": found.notes})


def figures_in(uri: str) -> dict[str, Any] | None:
    """What was found of the training in `uri`; null where it is not done."""
    where = storage.join(uri, FIGURES)
    return storage.read_json(where, "key") if storage.exists(where) else None


def show(figures: dict[str, Any], uri: str, job: Job, console: Console) -> None:
    """Print the figures, where to look, and how to use the model."""
    made = table(
        f"{figures['judged']} of {figures['held_out']} held-out {'examples' if job.names else 'media'} captioned",
        "figure",
        "value#",
    )
    for name, (label, form) in _NAMES.items():
        if name in figures:
            made.add_row(label, format(figures[name], form))
    console.print(made)
    for note in figures["notes"]:
        console.print(note, highlight=False)
    how = f"engine: transformers, model: {uri}/model, prompt: {job.config.ask.prompt}"
    if job.names:
        how += f", reads: [{', '.join(job.names)}]"
    console.print(
        f"Look at {uri}/{_LINES if job.names else _SHEET} and {uri}/loss.png\n"
        f"Use it in caption.captioners: {{NAME: {{{how}}}}}",
        highlight=False,
        markup=False,
        soft_wrap=True,
    )


def _shown(found: Verdict) -> list[Picture]:
    shown = []
    for example, text, right in list(zip(found.examples, found.written, found.right, strict=True))[:_SHOWN]:
        said = text or "(nothing)"
        frames = [_small(frame) for frame in _few(example.pictures)]
        words = said if right else f"{said} (true: {example.caption})"
        shown.append(Picture(np.asarray(image_grid(frames, len(frames))), words, right))
    return shown


def _few(frames: list[np.ndarray]) -> list[np.ndarray]:
    return [frames[at] for at in np.linspace(0, len(frames) - 1, min(_FRAMES, len(frames))).astype(int)]


def _small(frame: np.ndarray) -> np.ndarray:
    scale = _MOST_PX / max(frame.shape[:2])
    if scale >= 1:
        return frame
    return resize(
        np.ascontiguousarray(frame), (max(1, round(frame.shape[1] * scale)), max(1, round(frame.shape[0] * scale)))
    )
