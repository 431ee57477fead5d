"""Damaged files of a vision tokenizer's training: it goes on from just what was written, or says which file it is."""

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from tests import fuzzing
from tokenmill.storage.errors import TrainingError
from tokenmill.storage.run_log import TrainLog, read_log
from tokenmill.tokenizer.vision.training import checkpoint, loop
from tokenmill.tokenizer.vision.training.config import VisionModelConfig, VisionTrainConfig
from tokenmill.tokenizer.vision.training.pictures import draw_curve

pytestmark = pytest.mark.hostile

CONFIG = VisionTrainConfig(
    model=VisionModelConfig(channel_multiplier=[1, 1], codebook_size=4096, embed_dim=4),
    batch=4,
    crops_px=[16],
    steps=4,
    dtype="float32",
)


@pytest.fixture(scope="module")
def images() -> list[np.ndarray]:
    rng = np.random.default_rng(0)
    return [rng.integers(0, 256, (16, 16, 3), dtype=np.uint8) for _ in range(4)]


@pytest.fixture(scope="module")
def trained(tmp_path_factory, images) -> Path:
    folder = tmp_path_factory.mktemp("trained")
    loop.train(CONFIG, images, [], str(folder), checkpoint_steps=2)
    return folder


def equal(one: object, two: object) -> bool:
    if isinstance(one, torch.Tensor):
        return torch.equal(one, two)
    if isinstance(one, dict):
        return one.keys() == two.keys() and all(equal(value, two[key]) for key, value in one.items())
    if isinstance(one, list | tuple):
        return len(one) == len(two) and all(map(equal, one, two))
    return one == two


def read_curve(folder: Path) -> None:
    """What a resumed training does with the log."""
    TrainLog(str(folder), 2, "kind", "psnr").flush()
    draw_curve(read_log(str(folder), "kind", "psnr"), str(folder / "loss.png"))


READERS: dict[str, tuple[Callable[[Path], object], int]] = {
    "log.jsonl": (read_curve, 500),
    "done.json": (lambda folder: CONFIG.is_trained("", str(folder)), 20_000),
}


@pytest.mark.parametrize(
    ("name", "num_inputs"),
    [
        pytest.param(name, *number.values, marks=number.marks, id=f"{name}-{number.id}")
        for name, (_, many) in READERS.items()
        for number in fuzzing.count(many, few=min(300, many // 10))
    ],
)
def test_a_damaged_file_is_said(ram_path, trained, name, num_inputs):
    folder = Path(shutil.copytree(trained, ram_path / "trained"))
    assert fuzzing.check_reader(name, folder / name, num_inputs, lambda: READERS[name][0](folder))


@pytest.mark.parametrize("num_inputs", fuzzing.count(5_000))
def test_nothing_but_what_was_written_is_gone_on_from(ram_path, trained, num_inputs):
    folder = Path(shutil.copytree(trained, ram_path / "trained"))
    whole = checkpoint.load(str(folder))

    def load() -> None:
        try:
            assert equal(checkpoint.load(str(folder)), whole)
        except TrainingError as error:
            assert "checkpoint.pt: damaged (" in str(error)
            raise

    said = fuzzing.check_reader("checkpoint.pt", Path(checkpoint.uri_of(str(folder))), num_inputs, load)
    assert said > 0.9 * num_inputs


@pytest.mark.parametrize(
    "change",
    [
        lambda state: state["trainee"].popitem(),
        lambda state: state["trainee"].update({"vq.encoder.conv_in.weight": torch.zeros(2)}),
        lambda state: state["averages"].pop(),
        lambda state: state["optimizers"].clear(),
        lambda state: state["optimizers"][0]["param_groups"].clear(),
        lambda state: state.pop("step"),
        lambda state: state.pop("identity"),
        lambda state: state.update(step="x"),
    ],
)
def test_a_checkpoint_that_fits_no_training_is_said(tmp_path, trained, images, change):
    folder = Path(shutil.copytree(trained, tmp_path / "trained"))
    state = checkpoint.load(str(folder))
    change(state)
    checkpoint.save(str(folder), state)
    with pytest.raises(TrainingError, match=r"checkpoint\.pt: damaged .* begins anew"):
        loop.train(CONFIG, images, [], str(folder))


def test_a_damaged_log_ends_a_training_before_its_first_step(tmp_path, trained, images):
    folder = Path(shutil.copytree(trained, tmp_path / "trained"))
    log = folder / "log.jsonl"
    log.write_text(log.read_text().replace('"psnr"', '"x"', 1))
    with pytest.raises(TrainingError, match=r"log\.jsonl: damaged"):
        loop.train(CONFIG, images, [], str(folder))
