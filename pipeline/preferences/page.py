"""Drawings -> one HTML page on which a person chooses the best and the worst of each prompt, and saves votes.jsonl.

It opens from a disk, asks nothing of any server, and holds its pictures. Choices are kept by the browser until saved.
"""

import base64
import hashlib
import html
import io
from collections import defaultdict

import numpy as np
import pyarrow as pa
from PIL import Image
from rich.console import Console

from tokenmill import storage
from tokenmill.pipeline.config import RunConfig
from tokenmill.tokenizer.drawings import read_drawings
from tokenmill.tokenizer.vision.vision_tokenizer import VisionTokenizer

_LEAST_PX = 128  # shown size of a small picture

_SCRIPT = """
const votes = JSON.parse(localStorage.getItem(KEY) || "{}");
const groups = [...document.querySelectorAll("section")];
function show() {
  let done = 0;
  for (const group of groups) {
    const vote = votes[group.id] || {};
    for (const one of group.querySelectorAll("button")) {
      one.className = one.dataset.id === vote.chosen ? "best" : one.dataset.id === vote.rejected ? "worst" : "";
      const said = {best: "best", worst: "worst"}[one.className] || "not chosen";
      one.setAttribute("aria-label", `drawing ${one.dataset.n}, ${said}`);
    }
    done += vote.chosen && vote.rejected ? 1 : 0;
  }
  document.getElementById("count").textContent = `${done} of ${groups.length} prompts`;
}
function choose(button) {
  const vote = votes[button.closest("section").id] ||= {};
  const id = button.dataset.id;
  if (vote.chosen === id) delete vote.chosen;
  else if (vote.rejected === id) delete vote.rejected;
  else if (!vote.chosen) vote.chosen = id;
  else vote.rejected = id;
  localStorage.setItem(KEY, JSON.stringify(votes));
  show();
}
for (const button of document.querySelectorAll("section button")) {
  button.addEventListener("click", () => choose(button));
}
document.addEventListener("keydown", (event) => {
  const group = document.activeElement.closest("section");
  const number = Number(event.key);
  if (!group || !number) return;
  const button = group.querySelectorAll("button")[number - 1];
  if (button) { button.focus(); choose(button); }
});
document.getElementById("save").addEventListener("click", () => {
  const by = document.getElementById("who").value || "somebody";
  const whole = Object.values(votes).filter((vote) => vote.chosen && vote.rejected);
  const text = whole.map((vote) => JSON.stringify({...vote, by}) + "\\n").join("");
  const link = document.createElement("a");
  link.href = URL.createObjectURL(new Blob([text], {type: "application/jsonl"}));
  link.download = "votes.jsonl";
  link.click();
});
show();
"""
_STYLE = """
:root { color-scheme: light dark; font: 15px system-ui, sans-serif; }
header { position: sticky; top: 0; padding: .6rem 1rem; background: Canvas; border-bottom: 1px solid GrayText; }
header > * { margin-right: 1rem; }
section { padding: .4rem 1rem; }
h2 { font-size: 1rem; margin: .4rem 0; }
section button { padding: 3px; margin: 2px; border: 3px solid transparent; background: none; cursor: pointer; }
section button:focus-visible { outline: 3px solid Highlight; }
section button.best { border-color: #16a34a; }
section button.worst { border-color: #dc2626; }
img { display: block; image-rendering: pixelated; }
"""


def decoded(config: RunConfig, drawings: pa.Table) -> list[np.ndarray]:
    """Each drawing as uint8 (H, W, 3) RGB; of a clip its first frame."""
    tokenizer = VisionTokenizer.load(config.tokenize.model)
    by_grid: dict[tuple, list[int]] = defaultdict(list)
    for row, grid in enumerate(zip(*(drawings[f"grid_{axis}"].to_pylist() for axis in "thw"), strict=True)):
        by_grid[grid].append(row)
    found: list[np.ndarray] = [np.empty(0)] * len(drawings)
    for (t, h, w), rows in by_grid.items():
        codes = np.array(drawings["codes"].take(pa.array(rows)).to_pylist(), np.int64)
        if t is None:
            pictures = tokenizer.decode_images(codes.reshape(-1, h, w))
        else:
            pictures = tokenizer.decode_clips(codes.reshape(-1, t, h, w)[:, :1])[:, 0]
        for row, picture in zip(rows, pictures, strict=True):
            found[row] = picture
    return found


def write_page(config: RunConfig, folder: str, limit: int, seed: int, out: str, console: Console) -> None:
    """The page of at most `limit` prompts, chosen by `seed`."""
    drawings = read_drawings(storage.absolute(folder))
    prompts = sorted(set(drawings["prompt"].to_pylist()))
    chosen = {prompts[n] for n in np.random.default_rng(seed).permutation(len(prompts))[:limit]}
    rows = [n for n, prompt in enumerate(drawings["prompt"].to_pylist()) if prompt in chosen]
    shown = drawings.take(pa.array(rows))
    groups: dict[str, list[str]] = defaultdict(list)
    columns = (shown["prompt"].to_pylist(), shown["sample_id"].to_pylist(), decoded(config, shown))
    for prompt, name, picture in zip(*columns, strict=True):
        groups[prompt].append(_button(name, len(groups[prompt]) + 1, picture))
    sections = [
        f'<section id="p{n}"><h2>{html.escape(prompt)}</h2>{"".join(buttons)}</section>'
        for n, (prompt, buttons) in enumerate(sorted(groups.items()))
    ]
    key = hashlib.blake2b(" ".join(shown["sample_id"].to_pylist()).encode(), digest_size=8).hexdigest()
    script = f'const KEY = "tokenmill-{key}";{_SCRIPT}'
    page = _page(script, sections)
    storage.write_bytes(storage.absolute(out), page.encode())
    console.print(f"{len(sections)} prompts, {len(rows)} drawings, {len(page) / 1e6:.1f} MB in {out}", highlight=False)


def _button(name: str, number: int, picture: np.ndarray) -> str:
    factor = max(1, -(-_LEAST_PX // min(picture.shape[:2])))
    height, width = (side * factor for side in picture.shape[:2])
    png = io.BytesIO()
    Image.fromarray(picture).save(png, format="png")
    data = base64.b64encode(png.getvalue()).decode()
    image = f'<img alt="" width="{width}" height="{height}" src="data:image/png;base64,{data}">'
    return f'<button type="button" data-id="{html.escape(name)}" data-n="{number}">{image}</button>'


def _page(script: str, sections: list[str]) -> str:
    allowed = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    policy = f"default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'sha256-{allowed}'"
    return (
        '<!DOCTYPE html><html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">'
        '<meta name="viewport" content="width=device-width"><title>Choose</title>'
        f"<style>{_STYLE}</style></head><body><header>"
        "<span>Click the best drawing of each prompt, then the worst (or focus one and press their numbers).</span>"
        '<label>Your name <input id="who"></label><button id="save" type="button">Save votes.jsonl</button>'
        '<span id="count" role="status"></span></header><main>'
        f"{''.join(sections)}</main><script>{script}</script></body></html>"
    )
