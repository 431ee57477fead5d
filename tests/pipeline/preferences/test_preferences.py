"""Drawings are kept once, a page holds them and nothing else, scores vote by name, and a stage is given the pairs."""

import json
import re

import numpy as np
import pytest
import tiny_clip
from rich.console import Console

from tokenmill import storage
from tokenmill.pipeline.catalog.tables import Catalog
from tokenmill.pipeline.config import ConfigError, RunConfig
from tokenmill.pipeline.plan.training import train_jobs
from tokenmill.pipeline.preferences import drawings
from tokenmill.pipeline.preferences.drawings import draw_each, read_prompts
from tokenmill.pipeline.preferences.page import write_page
from tokenmill.pipeline.preferences.scores import vote_by_score
from tokenmill.pipeline.run.given import give
from tokenmill.storage.errors import TrainingError
from tokenmill.tokenizer.drawings import read_drawings
from tokenmill.training.run.given import pairs

QUIET = Console(quiet=True)
PROMPTS = ["a cat", "a <script>alert(1)</script> dog"]


class Scribbler:
    """In place of a trained model: codes by seed."""

    drawn = 0

    @classmethod
    def load(cls, uri):
        return cls()

    def draw(self, prompts, grid, choice, seeds):
        type(self).drawn += len(prompts)
        return np.stack([np.random.default_rng(seed).integers(0, 64, grid.shape) for seed in seeds])


@pytest.fixture()
def config(tmp_path, monkeypatch):
    """Of a root whose training says that it is done."""
    made = RunConfig.model_validate({
        "root": str(tmp_path / "root"),
        "sources": [{"uri": "x"}],
        "tokenize": {"model": "builtin"},
        "sample": {"grid_h": 2, "grid_w": 3},
        "curate": {"clip": {"model": str(tiny_clip.save(tmp_path / "clip")), "view_px": tiny_clip.SIDE}},
    })  # fmt: skip
    monkeypatch.setattr("tokenmill.training.sampling.Sampler", Scribbler)
    monkeypatch.setattr(drawings, "newest", lambda root, train: f"{root}/training/v000001-abc")
    return made


@pytest.fixture()
def folder(config, tmp_path):
    draw_each(config, PROMPTS, 4, 0, str(tmp_path / "drawings"), QUIET)
    return str(tmp_path / "drawings")


def test_what_is_there_is_not_drawn_again(config, folder):
    before = Scribbler.drawn
    table = read_drawings(folder)
    assert (len(table), table["model"][0].as_py(), len(table["codes"][0])) == (8, "v000001-abc", 6)
    draw_each(config, PROMPTS, 4, 0, folder, QUIET)
    assert Scribbler.drawn == before
    draw_each(config, [*PROMPTS, "a red dog"], 5, 0, folder, QUIET)
    assert Scribbler.drawn == before + 7 and len(read_drawings(folder)) == 15
    other = config.model_copy(update={"sample": config.sample.model_copy(update={"guidance": 1.5})})
    draw_each(other, PROMPTS, 4, 0, folder, QUIET)
    assert len(read_drawings(folder)) == 23, "drawn in another way they are others"


def test_the_page_holds_its_pictures_and_nothing_foreign(config, folder, tmp_path):
    out = tmp_path / "choose.html"
    write_page(config, folder, 10, 0, str(out), QUIET)
    page = out.read_text()
    assert page.count("data:image/png;base64,") == 8 and page.count("<section ") == 2
    assert "<script>alert" not in page and "&lt;script&gt;alert(1)" in page
    assert not re.search(r"https?://", page)
    assert all(name in page for name in read_drawings(folder)["sample_id"].to_pylist())
    write_page(config, folder, 1, 0, str(out), QUIET)
    assert out.read_text().count("<section ") == 1


def test_a_score_votes_by_its_name(config, folder, tmp_path):
    out = tmp_path / "votes.jsonl"
    vote_by_score(config, folder, "likeness", 0.0, str(out), QUIET)
    votes = [json.loads(line) for line in out.read_text().splitlines()]
    assert len(votes) == 2 and all(vote["by"].startswith("likeness of ") and vote["apart"] > 0 for vote in votes)
    vote_by_score(config, folder, "likeness", 3.0, str(out), QUIET)
    assert out.read_text() == "", "nothing is that far apart"
    with pytest.raises(ConfigError, match="curate.clip.aesthetic_head"):
        vote_by_score(config, folder, "aesthetic", 0.0, str(out), QUIET)


def test_a_stage_is_given_the_pairs(config, folder, tmp_path):
    votes = tmp_path / "votes.jsonl"
    vote_by_score(config, folder, "likeness", 0.0, str(votes), QUIET)
    document = config.model_dump(mode="json", exclude_unset=True)
    document["train"] = {"preferences": {"samples": folder, "votes": [str(votes)]}}
    staged = RunConfig.model_validate(document)
    catalog = Catalog(config.root)
    catalog.create()
    [job] = train_jobs(staged, catalog)
    give(catalog, job)
    assert len(pairs(job)) == 2
    votes.write_text(votes.read_text().splitlines()[0] + "\n")
    [other] = train_jobs(staged, catalog)
    assert other.run_uri != job.run_uri, "other votes, another training"
    draw_each(config, ["a red cat"], 2, 0, folder, QUIET)
    assert train_jobs(staged, catalog)[0].run_uri != other.run_uri, "more drawings too"


def test_prompts_are_lines(tmp_path):
    path = tmp_path / "prompts.txt"
    path.write_text("a cat\n\n  a dog \na cat\n")
    assert read_prompts(path) == ["a cat", "a dog"]
    path.write_text("\n")
    with pytest.raises(ConfigError, match="holds no prompt"):
        read_prompts(path)
    with pytest.raises(TrainingError, match="no drawings there"):
        read_drawings(str(tmp_path))
    assert storage.is_folder(str(tmp_path)) and not storage.is_folder(str(path))
