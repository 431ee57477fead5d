"""A tokenizer in BAAI's published layout, converted: the same codes and pixels from plain transformers."""

import json

import numpy as np
import pytest
import torch
from published_layout import published_tensors, save_published
from safetensors.torch import save_file
from transformers import Emu3VQVAE, Emu3VQVAEConfig

from tokenmill.tokenizer.vision.convert import NOTE, convert
from tokenmill.tokenizer.vision.vision_tokenizer import VisionTokenizer
from tokenmill.tokenizer.vision.weights import TokenizerLoadError


def published_weights():
    """The tensors of a small random model under their published names."""
    torch.manual_seed(0)
    settings = {"base_channels": 32, "channel_multiplier": [1, 1, 2, 2], "num_res_blocks": 1, "hidden_size": 64}
    model = Emu3VQVAE(Emu3VQVAEConfig(codebook_size=64, **settings))
    return published_tensors(model)


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    folder = tmp_path_factory.mktemp("published")
    save_published(published_weights(), folder)
    return folder


def test_codes_are_equal_before_and_after(published, tmp_path):
    out = tmp_path / "deep" / "converted"
    identity = convert(str(published), out)
    before, after = VisionTokenizer.load(str(published)), VisionTokenizer.load(str(out))
    assert after.identity == identity
    frames = np.random.default_rng(0).integers(0, 256, (2, 8, 32, 48, 3), np.uint8)
    codes = before.encode_images(frames[:, 0])
    assert len(np.unique(codes)) > 4
    np.testing.assert_array_equal(after.encode_images(frames[:, 0]), codes)
    np.testing.assert_array_equal(after.decode_images(codes), before.decode_images(codes))
    clip_codes = before.encode_clips(frames)
    np.testing.assert_array_equal(after.encode_clips(frames), clip_codes)
    np.testing.assert_array_equal(after.decode_clips(clip_codes), before.decode_clips(clip_codes))
    plain = Emu3VQVAE.from_pretrained(out).state_dict()
    assert all(torch.equal(tensor, plain[name]) for name, tensor in before.model.state_dict().items())


def test_an_earlier_result_is_replaced_and_nothing_else(published, tmp_path):
    first = convert(str(published), tmp_path / "out")
    (tmp_path / "out" / "model.safetensors").write_bytes(b"cut short")
    assert convert(str(published), tmp_path / "out") == first
    assert json.loads((tmp_path / "out" / NOTE).read_text())["source"] == str(published)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("precious")
    with pytest.raises(TokenizerLoadError, match="no earlier conversion; name a new or empty folder"):
        convert(str(published), tmp_path / "mine")
    assert [file.name for file in (tmp_path / "mine").iterdir()] == ["notes.txt"]
    with pytest.raises(TokenizerLoadError, match="in transformers' layout already"):
        convert(str(tmp_path / "out"), tmp_path / "again")


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt", "model.pth"])
def test_pickles_are_refused_and_the_message_works(name, published, tmp_path):
    source = tmp_path / "source"
    source.mkdir()
    (source / "config.json").write_text((published / "config.json").read_text())
    torch.save(published_weights(), source / name)
    with pytest.raises(TokenizerLoadError, match="pickle can run any code") as refused:
        convert(str(source / name), tmp_path / "out")
    with pytest.raises(TokenizerLoadError, match="pickle can run any code"):
        convert(str(source), tmp_path / "out")
    assert not (tmp_path / "out").exists()
    advice = str(refused.value).split('python -c "')[1].removesuffix('"')
    exec(advice, {})  # what `python -c` would run; a process of its own imports torch for seconds
    convert(str(source), tmp_path / "out")


def test_a_missing_tensor_is_named(published, tmp_path):
    weights = published_weights()
    del weights["encoder.conv_in.weight"]
    save_file(weights, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text((published / "config.json").read_text())
    with pytest.raises(TokenizerLoadError, match=r"encoder\.conv_in\.weight"):
        convert(str(tmp_path), tmp_path / "out")
