"""`tokenizer train` on two Ray Train workers: a model that plain transformers loads, then nothing left to do."""

import json

import numpy as np
import pytest
from PIL import Image
from rich.console import Console
from transformers import Emu3VQVAE

from tokenmill.pipeline.catalog.tables import CatalogError
from tokenmill.pipeline.config import load
from tokenmill.pipeline.vision.train import train_tokenizer
from tokenmill.storage.errors import TrainingError


@pytest.fixture
def config(tmp_path):
    folder = tmp_path / "photos"
    folder.mkdir()
    rng = np.random.default_rng(0)
    for number in range(6):
        tiles = rng.integers(0, 256, (8, 12, 3), dtype=np.uint8)
        Image.fromarray(tiles.repeat(8, 0).repeat(8, 1)).save(folder / f"{number}.png")
    document = {
        "root": str(tmp_path / "root"),
        "sources": [{"uri": str(folder)}],
        "curate": {"decide": {"image_rules": {"large_enough": "width_px >= 32"}}},
        "tokenizer": {
            "train": {
                "model": {"channel_multiplier": [1, 1], "codebook_size": 16, "embed_dim": 4},
                "steps": 4,
                "batch": 8,
                "crops_px": [16],
                "sides_px": [32, 48],
                "dtype": "float32",
            },
            "resources": {"num_workers": 2, "cpus_per_worker": 0.5, "checkpoint_steps": 2},
        },
    }
    path = tmp_path / "config.yaml"
    path.write_text(json.dumps(document))
    return path


def test_two_workers_train_a_tokenizer(local_ray, config, tmp_path):
    out = tmp_path / "trained"
    train_tokenizer(load(config), str(out), Console(quiet=True))
    records = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]
    assert [record["step"] for record in records] == [1, 2, 3, 4]
    model = Emu3VQVAE.from_pretrained(out / "model")
    assert model.config.codebook_size == 16
    for name in ("loss.png", "reconstructions.png", "checkpoint.pt"):
        assert (out / name).stat().st_size > 500

    before = (out / "checkpoint.pt").stat().st_mtime_ns
    train_tokenizer(load(config), str(out), Console(quiet=True))
    assert (out / "checkpoint.pt").stat().st_mtime_ns == before, "a finished training was trained again"
    with pytest.raises(TrainingError, match="another config"):
        train_tokenizer(load(config, ["tokenizer.train.steps=5"]), str(out), Console(quiet=True))


def test_without_kept_media_there_is_nothing_to_train_on(local_ray, config):
    none = load(config, ["curate.decide.image_rules={none: width_px < 0}"])
    with pytest.raises(CatalogError, match="no kept media"):
        train_tokenizer(none, None, Console(quiet=True))
