"""Drawings -> votes by a score, named by it: a score is no person, and the line says which it was."""

import json
from collections import defaultdict

import numpy as np
import pyarrow as pa
from rich.console import Console

from tokenmill import stages, storage
from tokenmill.pipeline.config import ConfigError, RunConfig
from tokenmill.pipeline.preferences.page import decoded
from tokenmill.tokenizer.drawings import read_drawings

SCORES = {"likeness": "similarity", "aesthetic": "aesthetic"}  # by name, the column of stages/embed/score_clip.py


def vote_by_score(config: RunConfig, folder: str, score: str, least: float, out: str, console: Console) -> None:
    """Write a vote for each prompt: its best drawing by `score` against its worst, where they are `least` apart.

    Raises ConfigError where the config has no model for it.
    """
    clip = config.curate.clip
    needed = "curate.clip.model" if score == "likeness" else "curate.clip.aesthetic_head"
    if clip.model is None or (score == "aesthetic" and clip.aesthetic_head is None):
        raise ConfigError(f"votes by {score} need {needed}: name its weights, by a hub name or a path")
    drawings = read_drawings(storage.absolute(folder))
    prompts = drawings["prompt"].to_pylist()
    values = _scored(stages.ScoreClip(clip), decoded(config, drawings), prompts, clip.view_px)[SCORES[score]]
    by_prompt = defaultdict(list)
    for name, prompt, value in zip(drawings["sample_id"].to_pylist(), prompts, values, strict=True):
        by_prompt[prompt].append((value, name))
    votes = []
    for each in by_prompt.values():
        (low, worst), (high, best) = min(each), max(each)
        if high - low >= least and best != worst:
            votes.append({"chosen": best, "rejected": worst, "by": f"{score} of {clip.model}", "apart": high - low})
    storage.write_bytes(storage.absolute(out), "".join(json.dumps(vote) + "\n" for vote in votes).encode())
    console.print(f"{len(votes)} score preferences of {len(by_prompt)} prompts in {out}", highlight=False)


def _scored(
    scorer: stages.ScoreClip, pictures: list[np.ndarray], prompts: list[str], view_px: int
) -> dict[str, list[float]]:
    views = [stages.make_view(picture, view_px) for picture in pictures]
    columns = {
        "kind": pa.array(["image"] * len(views)),
        "source_caption": pa.array(prompts),
        "views": pa.array(views, pa.large_binary()),
    }
    columns |= {field.name: pa.nulls(len(views), field.type) for field in scorer.writes}
    scored = scorer(pa.table(columns))
    return {name: scored[name].to_pylist() for name in SCORES.values()}
