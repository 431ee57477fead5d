"""Damaged folders of a vision tokenizer: each one loads, or says in one line what is wrong with it."""

import json
import resource
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
    """The numbers that are asked for without loading anything."""
    assert isinstance(weights.codebook_size(name), int)
    assert isinstance(weights.spatial_factor(name), int)
    assert isinstance(weights.codes_clips(name), bool)


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


@pytest.mark.parametrize("number", [10**7, 10**9, 2**40])
@pytest.mark.parametrize("key", ["base_channels", "codebook_size", "embed_dim", "num_res_blocks", "latent_channels"])
def test_a_config_of_absurd_sizes_is_refused_before_memory_is_taken(tmp_path, key, number):
    folder = Path(shutil.copytree(weights.BUILTIN_FOLDER, tmp_path / "tokenizer"))
    config = json.loads((folder / "config.json").read_text())
    assert key in config
    (folder / "config.json").write_text(json.dumps(config | {key: number}))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(weights.TokenizerLoadError, match=r"config\.json"):
        VisionTokenizer.load(str(folder))
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100_000, "KiB"


def test_a_damaged_config_is_said_when_the_tokenizer_is_loaded(ram_path):
    folder = Path(shutil.copytree(weights.BUILTIN_FOLDER, ram_path / "tokenizer"))
    path = folder / "config.json"
    assert fuzzing.check_reader("config.json", path, 60, lambda: VisionTokenizer.load(str(folder)))


def test_a_tensor_that_is_not_there_is_named(tmp_path):
    folder = Path(shutil.copytree(weights.BUILTIN_FOLDER, tmp_path / "tokenizer"))
    tensors = load_file(folder / "model.safetensors")
    tensors.pop(name := next(iter(tensors)))
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(weights.TokenizerLoadError, match=f"no weights {name}"):
        VisionTokenizer.load(str(folder))
