"""`captioner train` on a catalog: pairs, two workers that train as one, a verdict, and then nothing left to do."""

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest
from PIL import Image
from rich.console import Console

from tokenmill.pipeline.captioner import judge
from tokenmill.pipeline.captioner.job import WRITTEN, job_of, paired
from tokenmill.pipeline.captioner.pairs import CatalogPairs
from tokenmill.pipeline.captioner.train import train_captioner
from tokenmill.pipeline.catalog.tables import Catalog, CatalogError
from tokenmill.pipeline.config import ConfigError, RunConfig, load
from tokenmill.pipeline.demo.scenes import draw, split
from tokenmill.pipeline.reports.video_file import write_video
from tokenmill.pipeline.run.runner import run_phases
from tokenmill.stages import PLACES
from tokenmill.training.captioner import loop
from tokenmill.training.captioner.pairs import is_held_out

SCRATCH = {"image_px": 32, "hidden_size": 32, "vision_layers": 1, "text_layers": 1, "vocab_size": 300}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """24 scenes, of which the last four have no captions, and a folder for the rest of a config."""
    folder = tmp_path / "scenes"
    folder.mkdir()
    scenes, _ = split(0, 24, 8)
    rng = np.random.default_rng(0)
    for number, scene in enumerate(scenes):
        draw(scene, 64, rng).save(folder / f"{number:02}.png")
        if number < 20:
            (folder / f"{number:02}.txt").write_text(scene.caption)
    document = {
        "root": str(tmp_path / "root"),
        "sources": [{"uri": str(folder)}],
        "curate": {"decide": {"image_rules": {"all": "width_px > 0"}, "video_rules": {"all": "width_px > 0"}}},
        "captioner": {
            "train": {
                "scratch": SCRATCH,
                "ask": {"prompt": "short"},
                "optimizer": {"steps": 3, "batch": 5},
                "held_out_share": 0.3,
            },
            "resources": {"num_workers": 2, "cpus_per_worker": 0.5, "batch": 2, "checkpoint_steps": 2},
        },
    }
    made = tmp_path / "config.yaml"
    made.write_text(json.dumps(document))
    return made


def curated(path: Path, *sets: str) -> RunConfig:
    config = load(path, list(sets))
    run_phases(config, ("curate",), "curate", Console(quiet=True))
    return config


def test_two_workers_train_as_one_and_once(local_ray, path, tmp_path, capsys):
    config = load(path)
    model = Path(train_captioner(config, Console(width=200)))
    out = model.parent
    assert out.parent == tmp_path / "root" / "captioner"
    said = capsys.readouterr().out
    assert "held-out media captioned" in said and f"model: {model}, prompt: short" in said
    figures = json.loads((out / "figures.json").read_text())
    assert figures["trained_on"] + figures["held_out"] == 20 and figures["judged"] == figures["held_out"] > 0
    assert 0 <= figures["exact"] <= 1 and 0 <= figures["cider"] <= 10
    for name in ("held_out.png", "loss.png", "model/model.safetensors", "model/chat_template.jinja"):
        assert (out / name).stat().st_size > 100

    job = job_of(config)
    assert job.key == out.name
    alone = config.captioner.resources.model_copy(update={"num_workers": 1})
    loop.train(job.config, alone, job.train, job.held_out, str(tmp_path / "alone"), key=job.key)
    logs = [[json.loads(line) for line in (at / "log.jsonl").open()] for at in (out, tmp_path / "alone")]
    for together, single in zip(*logs, strict=True):
        assert together["train"] == pytest.approx(single["train"], rel=1e-3)

    written = (model / "model.safetensors").stat().st_mtime_ns
    assert train_captioner(config, Console(width=200)) == str(model)
    assert "Trained already" in capsys.readouterr().out
    assert (model / "model.safetensors").stat().st_mtime_ns == written


def test_pairs_are_kept_media_with_captions_and_name_the_training(path):
    config = curated(path)
    job = job_of(config)
    train, held_out = (set(pairs.rows["media_id"].to_pylist()) for pairs in (job.train, job.held_out))
    assert len(train | held_out) == 20 and not train & held_out
    assert held_out == {each for each in train | held_out if is_held_out(each, 0.3)}
    example = job.train.load(0)
    assert example.pictures[0].shape == (64, 64, 3) and example.prompt.startswith("Describe this picture in one")
    folder = Path(config.sources[0].uri)
    assert example.caption in {file.read_text() for file in folder.glob("*.txt")}

    assert job_of(curated(path, "captioner.resources.batch=7")).key == job.key
    assert job_of(curated(path, "captioner.train.ask.prompt=dense")).key != job.key
    (folder / "21.txt").write_text("a new caption")
    assert job_of(curated(path)).key != job.key
    Image.new("RGB", (64, 64)).save(folder / "00.png")
    loaded = job.train, job.held_out
    assert [pairs.load(n) for pairs in loaded for n in range(len(pairs))].count(None) == 1
    assert sum(pairs.left_out.get("changed", 0) for pairs in loaded) == 1


def test_clips_are_frames(path, tmp_path):
    folder = tmp_path / "scenes"
    frames = [np.full((64, 64, 3), 8 * number, np.uint8) for number in range(30)]
    write_video(folder / "brighter.mp4", frames, 12)
    (folder / "brighter.txt").write_text("it gets brighter")
    config = curated(path, "captioner.train.ask.num_frames=3", "captioner.train.held_out_share=0.5")
    job = job_of(config)
    both = [pairs.load(n) for pairs in (job.train, job.held_out) for n in range(len(pairs))]
    (clip,) = [example for example in both if example.caption == "it gets brighter"]
    means = [frame.mean() for frame in clip.pictures]
    assert len(means) == 3 and means == sorted(means) and "frames of one video" in clip.prompt
    images = load(path, ["captioner.train.ask.serves=images"])
    assert job_of(images).rows.num_rows == 20


class OfTruth:
    """Embeds every picture and every true caption alike, and all other texts at right angles to them."""

    size_px = 32

    def __init__(self, true: set[str]):
        self._true = true

    def embed_images(self, views: np.ndarray) -> np.ndarray:
        assert views.shape[1:] == (32, 32, 3)
        return np.tile(np.array([[1.0, 0.0]], np.float32), (len(views), 1))

    def embed_texts(self, texts: list[str]) -> np.ndarray:
        return np.array([[1.0, 0.0] if text in self._true else [0.0, 1.0] for text in texts], np.float32)


def test_likeness_by_the_clip_model_of_the_config(path, tmp_path, monkeypatch):
    config = curated(path, "captioner.train.optimizer.steps=1")
    job = job_of(config)
    true = set(job.held_out.rows["answer"].to_pylist())
    monkeypatch.setattr(judge, "ClipModel", lambda name, device: OfTruth(true))
    model = loop.train(job.config, config.captioner.resources, job.train, job.held_out, str(tmp_path / "o"), key="k")
    found = judge.judge(job, config.captioner.resources, job.held_out, model, "some/clip")
    assert found.figures["clip_true"] == 1 and found.figures["clip_written"] == 0  # one step teaches nothing
    assert found.figures["judged"] == len(found.written) == len(job.held_out)


def test_captions_of_a_captioner_are_learned_span_by_span(path, tmp_path):
    """Of each third of a clip another one; the newer of two runs counts; of what is not kept, nothing."""
    frames = [np.full((64, 64, 3), 8 * number, np.uint8) for number in range(30)]
    write_video(tmp_path / "scenes" / "brighter.mp4", frames, 10)
    config = curated(path, "captioner.train.ask.num_frames=2")
    media = Catalog(config.root).media.scan([*PLACES.names, "source_caption", "metadata"])
    (clip,) = media.filter(pc.equal(media["kind"], "video")).to_pylist()
    third = (clip["end_s"] - clip["start_s"]) / 3
    spans = [(clip["start_s"] + i * third, clip["start_s"] + (i + 1) * third) for i in range(3)]
    written = [(clip["media_id"], i, *span, f"part\n{i}", "run2") for i, span in enumerate(spans)]
    written += [(clip["media_id"], 1, *spans[1], "older", "run1"), ("f" * 32, None, None, None, "gone", "run1")]
    schema = pa.schema([Catalog(config.root).captions.schema.field(name) for name in WRITTEN])
    table = pa.Table.from_pylist([dict(zip(WRITTEN, row, strict=True)) for row in written], schema=schema)
    pairs = CatalogPairs(config.captioner.train, paired(media, table), config.fetched)
    examples = [pairs.load(number) for number in range(len(pairs))]
    assert [example.caption for example in examples] == ["part 0", "part 1", "part 2"]
    means = [frame.mean() for example in examples for frame in example.pictures]
    assert len(means) == 6 and means == sorted(means)


def test_what_cannot_be_learned_from_is_said(path):
    with pytest.raises(ConfigError, match="name the weights to start from"):
        train_captioner(load(path, ["captioner.train.scratch=null"]), Console(quiet=True))
    config = curated(path)
    with pytest.raises(CatalogError, match="qwen has written none; run `tokenmill caption`"):
        job_of(load(path, ["captioner.train.captions=qwen"]))
    with pytest.raises(CatalogError, match="change captioner.train.held_out_share"):
        job_of(load(path, ["captioner.train.held_out_share=0.000001"]))
    prompt = Path(config.root) / "leak.md"
    prompt.write_text("version: 1\n\nSay {source_caption} again.")
    with pytest.raises(ConfigError, match="which is the answer"):
        job_of(load(path, [f"captioner.train.ask.prompt={prompt}"]))
