"""Prompts -> several drawings of each, kept with their codes: `part-*.parquet` of a folder, a few prompts a part.

What is there is not drawn again: the same command completes one that was stopped, and more prompts add to it.
"""

import hashlib
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
from rich.console import Console

from tokenmill import storage
from tokenmill.pipeline.catalog.models import name_of, newest
from tokenmill.pipeline.catalog.tables import CatalogError
from tokenmill.pipeline.config import ConfigError, RunConfig
from tokenmill.tokenizer.drawings import DRAWINGS, read_drawings
from tokenmill.tokenizer.shards import write_parquet

_AT_ONCE = 64  # drawings of one part
_SHOW_EVERY_S = 5.0


def read_prompts(path: Path) -> list[str]:
    """One a line, each once. Raises ConfigError for a file without any."""
    try:
        lines = (line.strip() for line in path.read_text(encoding="utf-8").splitlines())
        prompts = list(dict.fromkeys(line for line in lines if line))
    except (OSError, UnicodeError) as error:
        raise ConfigError(f"{path}: cannot be read as text: {error}; give a file with a prompt on each line") from None
    if not prompts:
        raise ConfigError(f"{path}: holds no prompt; write one on each line")
    return prompts


def draw_each(config: RunConfig, prompts: list[str], each: int, seed: int, out: str, console: Console) -> None:
    """Draw every prompt `each` times, with seeds from `seed` on, by the config's newest model and its `sample` block.

    Raises CatalogError without a model.
    """
    from tokenmill.training.sampling import Choice, Grid, Sampler

    model = newest(config.root, config.train)
    if model is None:
        raise CatalogError(f"{config.root}: no trained model yet; run `tokenmill train CONFIG` first")
    out, name, how = storage.absolute(out), name_of(model), config.sample
    known = set(read_drawings(out)["sample_id"].to_pylist()) if storage.exists(out) else set()
    wanted = [(prompt, seed + n) for prompt in prompts for n in range(each)]
    missing = [(prompt, number) for prompt, number in wanted if _id_of(name, config, prompt, number) not in known]
    console.print(f"{len(wanted)} drawings by {name}; {len(wanted) - len(missing)} are there", highlight=False)
    if not missing:
        return
    grid, choice = Grid(how.grid_h, how.grid_w), Choice(how.top_k, how.top_p, how.temperature, how.guidance)
    sampler, start, shown = Sampler.load(model), time.monotonic(), time.monotonic()
    for first, part in _parts(missing):
        codes = sampler.draw([prompt for prompt, _ in part], grid, choice, [number for _, number in part])
        rows = [
            {
                "sample_id": _id_of(name, config, prompt, number),
                "prompt": prompt,
                "seed": number,
                "codes": np.asarray(one).ravel().tolist(),
                "grid_h": how.grid_h,
                "grid_w": how.grid_w,
                "model": name,
            }
            for (prompt, number), one in zip(part, codes, strict=True)
        ]
        place = storage.join(out, f"part-{rows[0]['sample_id']}.parquet")
        write_parquet(pa.Table.from_pylist(rows, schema=DRAWINGS), place)
        done = first + len(part)
        if time.monotonic() - shown >= _SHOW_EVERY_S or done == len(missing):
            shown = time.monotonic()
            rate = done / (shown - start)
            left = f"{rate:.1f}/s  left {(len(missing) - done) / rate:.0f} s"
            console.print(f"  {done}/{len(missing)} drawings  {left}", highlight=False)


def _parts(items: list[tuple[str, int]]) -> Iterator[tuple[int, list[tuple[str, int]]]]:
    for first in range(0, len(items), _AT_ONCE):
        yield first, items[first : first + _AT_ONCE]


def _id_of(model: str, config: RunConfig, prompt: str, seed: int) -> str:
    """Of the model, how it drew, the prompt and the seed."""
    how = config.sample
    words = (model, how.grid_h, how.grid_w, how.top_k, how.top_p, how.temperature, how.guidance, seed, prompt)
    return hashlib.blake2b("\0".join(map(str, words)).encode(), digest_size=8).hexdigest()
