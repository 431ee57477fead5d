"""Chameleon's and Janus' tokenizers behind VisionTokenizer: the reference class's codes and pixels, at any aspect."""

import json

import numpy as np
import pytest
import torch
from transformers import ChameleonVQVAE, ChameleonVQVAEConfig, Emu3VQVAE, Emu3VQVAEConfig, JanusVQVAE, JanusVQVAEConfig

from tokenmill.storage.identity import weights_id
from tokenmill.tokenizer.vision import nearest, vision_tokenizer, weights
from tokenmill.tokenizer.vision.vision_tokenizer import VisionTokenizer
from tokenmill.tokenizer.vision.weights import TokenizerLoadError

SIZES = {"base_channels": 32, "channel_multiplier": [1, 1, 2], "num_res_blocks": 1, "latent_channels": 16}


def small(kind, folder):
    """A random model, saved in `folder`, with a codebook that its latents spread over."""
    torch.manual_seed(3)
    if kind == "janus":
        model = JanusVQVAE(JanusVQVAEConfig(embed_dim=8, num_embeddings=512, num_patches=4, **SIZES))
    else:
        model = ChameleonVQVAE(ChameleonVQVAEConfig(embed_dim=16, num_embeddings=512, resolution=32, **SIZES))
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.normal_(0, 1 / parameter[0].numel() ** 0.5)
        model.quantize.embedding.weight.normal_(0, 0.5)
    model.save_pretrained(folder)
    return type(model).from_pretrained(folder).requires_grad_(False)


def pictures(*shape):
    rng = np.random.default_rng(0)
    coarse = rng.uniform(0, 255, (shape[0], shape[1] // 4, shape[2] // 4, 3)).repeat(4, 1).repeat(4, 2)
    return np.clip(coarse + rng.normal(0, 12, shape), 0, 255).astype(np.uint8)


def reference_pixels(frames):
    return ((torch.from_numpy(frames).float() / 255 - 0.5) / 0.5).movedim(-1, -3)


@pytest.mark.parametrize("kind", ["janus", "chameleon"])
@pytest.mark.parametrize("height, width", [(16, 16), (16, 40), (52, 12), (36, 28)])
def test_codes_equal_the_reference(kind, height, width, tmp_path):
    model = small(kind, tmp_path)
    frames = pictures(3, height, width, 3)
    expected = model.encode(reference_pixels(frames)).image_tokens.view(3, height // 4, width // 4).numpy()
    tokenizer = VisionTokenizer.load(str(tmp_path))
    codes = tokenizer.encode_images(frames)
    assert codes.dtype == np.int64 and len(np.unique(codes)) > 4
    np.testing.assert_array_equal(codes, expected)
    assert (tokenizer.codebook_size, tokenizer.spatial_factor, tokenizer.temporal_factor) == (512, 4, 1)
    assert tokenizer.identity == weights_id(tmp_path)
    assert weights.codebook_size(str(tmp_path)) == 512


@pytest.mark.parametrize("kind", ["janus", "chameleon"])
def test_the_search_is_chunked(kind, tmp_path, monkeypatch):
    small(kind, tmp_path)
    tokenizer = VisionTokenizer.load(str(tmp_path))
    frames = pictures(2, 24, 40, 3)
    whole = tokenizer.encode_images(frames)
    monkeypatch.setattr(nearest, "_CACHED_ELEMENTS", 512 * 7)
    np.testing.assert_array_equal(tokenizer.encode_images(frames), whole)


@pytest.mark.parametrize("height, width", [(16, 16), (12, 40)])
def test_janus_decodes_like_the_reference(height, width, tmp_path):
    model = small("janus", tmp_path)
    codes = np.random.default_rng(1).integers(0, 512, (2, height // 4, width // 4))
    model.quantize.quant_state_dims = [height // 4, width // 4]  # the reference decodes one size at a time
    expected = vision_tokenizer.to_frames(model.decode(torch.from_numpy(codes).flatten(1))).numpy()
    decoded = VisionTokenizer.load(str(tmp_path)).decode_images(codes)
    assert decoded.shape == (2, height, width, 3) and decoded.std() > 5
    difference = np.abs(decoded.astype(int) - expected)
    assert difference.max() <= 1 and (difference > 0).mean() < 1e-3


def test_what_they_cannot_do_is_refused_with_the_next_action(tmp_path):
    small("chameleon", tmp_path / "chameleon")
    small("janus", tmp_path / "janus")
    chameleon, janus = (VisionTokenizer.load(str(tmp_path / name)) for name in ("chameleon", "janus"))
    assert (chameleon.decodes, janus.decodes) == (False, True)
    with pytest.raises(ValueError, match="ChameleonVQVAE has no decoder"):
        chameleon.decode_images(np.zeros((1, 2, 2), np.int64))
    for tokenizer in (chameleon, janus):
        assert not tokenizer.codes_clips
        with pytest.raises(ValueError, match=r"images only; code clips with.*BAAI/Emu3-VisionTokenizer"):
            tokenizer.encode_clips(np.zeros((1, 4, 16, 16, 3), np.uint8))
        with pytest.raises(ValueError, match="images only"):
            tokenizer.decode_clips(np.zeros((1, 1, 4, 4), np.int64))
    with pytest.raises(ValueError, match="multiples of 4"):
        janus.encode_images(np.zeros((1, 18, 16, 3), np.uint8))


def test_the_config_alone_says_what_is_coded(tmp_path):
    small("janus", tmp_path / "janus")
    settings = {"base_channels": 32, "channel_multiplier": [1, 1], "num_res_blocks": 1, "hidden_size": 32}
    Emu3VQVAE(Emu3VQVAEConfig(codebook_size=16, **settings)).save_pretrained(tmp_path / "emu3")
    assert not weights.codes_clips(str(tmp_path / "janus"))
    assert weights.codes_clips(str(tmp_path / "emu3")) and weights.codes_clips("builtin")
    config = json.loads((tmp_path / "janus/config.json").read_text())
    (tmp_path / "janus/config.json").write_text(json.dumps(config | {"model_type": "janus"}))
    for call in (weights.codes_clips, weights.codebook_size, VisionTokenizer.load):
        with pytest.raises(TokenizerLoadError, match=r"save `model\.vqmodel`"):
            call(str(tmp_path / "janus"))
