"""Damaged folders of a vision tokenizer: each one loads, or says in one line what is wrong with it."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

from tests import fuzzing
from tokenmill.tokenizer.vision import weights
from tokenmill.tokenizer.vision.vision_tokenizer import VisionTokenizer

pytestmark = pytest.mark.hostile


def read_config(name: str) -> None:
    assert isinstance(weights.codebook_size(name), int)
    assert isinstance(weights.spatial_factor(name), int)
    assert isinstance(weights.codes_clips(name), bool)


# A config of other sizes may ask for any amount of memory, so that it is not loaded here.
READERS: dict[str, tuple[Callable[[str], object], int]] = {
    "config.json": (read_config, 20_000),
    "model.safetensors": (VisionTokenizer.load, 100),
}


@pytest.mark.parametrize(
    ("name", "num_inputs"),
    [
        pytest.param(name, *number.values, marks=number.marks, id=f"{name}-{number.id}")
        for name, (_, many) in READERS.items()
        for number in fuzzing.count(many, few=min(300, many // 10))
    ],
)
def test_a_damaged_file_of_a_tokenizer_is_said(ram_path, name, num_inputs):
    folder = Path(shutil.copytree(weights.BUILTIN_FOLDER, ram_path / "tokenizer"))
    assert fuzzing.check_reader(name, folder / name, num_inputs, lambda: READERS[name][0](str(folder)))


def test_a_tensor_that_is_not_there_is_named(tmp_path):
    folder = Path(shutil.copytree(weights.BUILTIN_FOLDER, tmp_path / "tokenizer"))
    tensors = load_file(folder / "model.safetensors")
    tensors.pop(name := next(iter(tensors)))
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(weights.TokenizerLoadError, match=f"no weights {name}"):
        VisionTokenizer.load(str(folder))
