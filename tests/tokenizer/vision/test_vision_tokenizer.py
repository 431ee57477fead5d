"""The fast path gives what transformers' Emu3VQVAE gives: the same codes, the same pixels, a quarter of the work."""

import json

import numpy as np
import pytest
import torch
from published_layout import published_tensors, save_published
from safetensors.torch import save_file
from torch.utils.flop_counter import FlopCounterMode
from transformers import Emu3VQVAE, Emu3VQVAEConfig

from tokenmill.storage.identity import weights_id
from tokenmill.tokenizer.vision import emu3, published, weights
from tokenmill.tokenizer.vision.evaluation.metrics import psnr
from tokenmill.tokenizer.vision.nearest import nearest_codes
from tokenmill.tokenizer.vision.vision_tokenizer import TokenizerLoadError, VisionTokenizer


def small_model(codebook_size=32768, seed=0, **changes):
    torch.manual_seed(seed)
    settings = {"base_channels": 32, "channel_multiplier": [1, 1, 2, 2], "num_res_blocks": 1, "hidden_size": 64}
    model = Emu3VQVAE(Emu3VQVAEConfig(codebook_size=codebook_size, **(settings | changes)))
    # Random weights crowd into a few codes; spread the latents over the codebook so that a difference would show.
    with torch.no_grad():
        model.quant_conv.conv.weight.mul_(2)
        for module in model.modules():
            if isinstance(module, torch.nn.BatchNorm3d):
                module.running_mean.normal_(0, 0.1)
                module.running_var.uniform_(0.5, 1.5)
    return model.requires_grad_(False)


def frames_of(*shape, seed=0):
    """Smooth random pictures with some noise."""
    rng = np.random.default_rng(seed)
    coarse = rng.uniform(0, 255, (*shape[:-3], shape[-3] // 8, shape[-2] // 8, 3))
    smooth = coarse.repeat(8, axis=-3).repeat(8, axis=-2)
    return np.clip(smooth + rng.normal(0, 12, shape), 0, 255).astype(np.uint8)


def reference_pixels(frames):
    x = torch.from_numpy(frames).float() / 255
    return ((x - 0.5) / 0.5).movedim(-1, -3)


def reference_codes_of_clips(model, frames):
    """Explicit module calls, group by group: HF's `encode` crops clips wrongly (portrait comes out short)."""
    groups = reference_pixels(frames).unflatten(1, (-1, 4)).flatten(0, 1)
    z = model.quant_conv(model.encoder(groups).permute(0, 2, 1, 3, 4)).permute(0, 2, 1, 3, 4)
    codes = model.quantize(z)[:, 0]
    return codes.unflatten(0, (len(frames), -1)).numpy()


def reference_frames(pixels):
    return ((pixels * 0.5 + 0.5).clamp(0, 1) * 255).round().to(torch.uint8).movedim(-3, -1).numpy()


def assert_same_pixels(ours, theirs):
    """Equal, but for pixels that sums in another order (the batch differs) round to the neighbouring value."""
    difference = np.abs(ours.astype(int) - theirs)
    assert difference.max() <= 1 and (difference > 0).mean() < 1e-3


@pytest.mark.parametrize("codebook_size", [16, 32768])
@pytest.mark.parametrize("height, width", [(32, 64), (64, 40), (40, 40)])
def test_images_equal_the_reference(codebook_size, height, width):
    model = small_model(codebook_size)
    frames = frames_of(3, height, width, 3)
    expected = model.encode(reference_pixels(frames), image_sizes=torch.tensor([[height, width]] * 3)).image_tokens
    expected = torch.stack(list(expected)).numpy()
    tokenizer = VisionTokenizer(model, "test")
    codes = tokenizer.encode_images(frames)
    assert codes.dtype == np.int64 and codes.shape == (3, height // 8, width // 8)
    assert len(np.unique(codes)) > 4
    np.testing.assert_array_equal(codes, expected)
    decoded = tokenizer.decode_images(codes)
    assert decoded.dtype == np.uint8 and decoded.shape == frames.shape
    assert_same_pixels(decoded, reference_frames(model.decode(torch.from_numpy(expected))))


@pytest.mark.parametrize("group_bytes", [0, 1 << 30])  # frames decoded one at a time; all four at once
@pytest.mark.parametrize("height, width", [(32, 48), (48, 32)])
def test_clips_equal_the_reference_in_groups_of_four(height, width, group_bytes, monkeypatch):
    monkeypatch.setattr(emu3, "_GROUP_BYTES", group_bytes)
    model = small_model()
    frames = frames_of(2, 12, height, width, 3)
    expected = reference_codes_of_clips(model, frames)
    tokenizer = VisionTokenizer(model, "test")
    codes = tokenizer.encode_clips(frames)
    assert codes.shape == (2, 3, height // 8, width // 8)
    np.testing.assert_array_equal(codes, expected)
    decoded = tokenizer.decode_clips(codes)
    by_group = model.decode(torch.from_numpy(expected).flatten(0, 1).unsqueeze(1))
    assert_same_pixels(decoded, reference_frames(by_group).reshape(frames.shape))


def test_landscape_clip_equals_transformers_encode():
    model = small_model()
    frames = frames_of(1, 4, 32, 64, 3)
    expected = model.encode(reference_pixels(frames), image_sizes=torch.tensor([[32, 64]])).image_tokens[0]
    np.testing.assert_array_equal(VisionTokenizer(model, "test").encode_clips(frames)[0], expected.numpy())


def test_a_group_can_be_read_alone():
    tokenizer = VisionTokenizer(small_model(), "test")
    codes = tokenizer.encode_clips(frames_of(1, 12, 32, 32, 3))
    whole = tokenizer.decode_clips(codes)
    np.testing.assert_array_equal(tokenizer.decode_clips(codes[:, 1:2])[0], whole[0, 4:8])


def test_batch_size_never_changes_a_result():
    tokenizer = VisionTokenizer(small_model(), "test")
    images, clips = frames_of(5, 40, 24, 3), frames_of(2, 8, 24, 40, 3)
    codes, clip_codes = tokenizer.encode_images(images), tokenizer.encode_clips(clips)
    decoded, decoded_clips = tokenizer.decode_images(codes), tokenizer.decode_clips(clip_codes)
    for row in range(5):
        np.testing.assert_array_equal(tokenizer.encode_images(images[row : row + 1])[0], codes[row])
        np.testing.assert_array_equal(tokenizer.decode_images(codes[row : row + 1])[0], decoded[row])
    for row in range(2):
        np.testing.assert_array_equal(tokenizer.encode_clips(clips[row : row + 1])[0], clip_codes[row])
        np.testing.assert_array_equal(tokenizer.decode_clips(clip_codes[row : row + 1])[0], decoded_clips[row])


def test_passes_of_several_images_give_the_same_codes():
    """As a GPU runs them."""
    model = small_model()
    images, clips = frames_of(5, 40, 24, 3), frames_of(2, 8, 24, 40, 3)
    one, several = VisionTokenizer(model, "test"), VisionTokenizer(model, "test")
    for passes in (several._encode_stills, several._encode_groups, several._decode_stills, several._decode_groups):
        passes.max_px = 4 * 40 * 24
    codes, clip_codes = one.encode_images(images), one.encode_clips(clips)
    np.testing.assert_array_equal(several.encode_images(images), codes)
    np.testing.assert_array_equal(several.encode_clips(clips), clip_codes)
    assert_same_pixels(several.decode_images(codes), one.decode_images(codes))
    assert_same_pixels(several.decode_clips(clip_codes), one.decode_clips(clip_codes))


def test_empty_batches():
    tokenizer = VisionTokenizer(small_model(16), "test")
    assert tokenizer.encode_images(np.zeros((0, 32, 40, 3), np.uint8)).shape == (0, 4, 5)
    assert tokenizer.encode_clips(np.zeros((0, 8, 32, 40, 3), np.uint8)).shape == (0, 2, 4, 5)
    assert tokenizer.decode_images(np.zeros((0, 4, 5), np.int64)).shape == (0, 32, 40, 3)
    assert tokenizer.decode_clips(np.zeros((0, 2, 4, 5), np.int64)).shape == (0, 8, 32, 40, 3)


def test_a_still_costs_a_quarter_of_the_reference():
    model = small_model()
    frames = frames_of(1, 64, 64, 3)
    tokenizer = VisionTokenizer(model, "test")
    codes = tokenizer.encode_images(frames)

    def flops(call):
        with FlopCounterMode(display=False) as counter:
            call()
        return counter.get_total_flops()

    sizes = torch.tensor([[64, 64]])
    encode = flops(lambda: model.encode(reference_pixels(frames), image_sizes=sizes))
    decode = flops(lambda: model.decode(torch.from_numpy(codes)))
    assert 0.2 < flops(lambda: tokenizer.encode_images(frames)) / encode <= 0.27
    assert 0.2 < flops(lambda: tokenizer.decode_images(codes)) / decode <= 0.27


@pytest.mark.parametrize("num_vectors", [1, 255, 256, 257, 1000])
def test_nearest_codes_equal_the_reference_also_in_ties(num_vectors):
    model = small_model(32768)
    quantizer = model.quantize
    with torch.no_grad():
        quantizer.embedding.weight[20000:20100] = quantizer.embedding.weight[100:200]  # equal codes: the first wins
    torch.manual_seed(1)
    z = torch.randn(num_vectors, 4)
    z[: num_vectors // 2] = quantizer.embedding.weight[20000 + torch.arange(num_vectors // 2) % 100]
    expected = quantizer(z.view(1, 1, num_vectors, 1, 4).permute(0, 1, 4, 2, 3)).flatten()
    codebook = quantizer.embedding.weight
    codes = nearest_codes(z, codebook, (codebook**2).sum(1))
    assert torch.equal(codes, expected)
    assert (codes[: num_vectors // 2] < 20000).all()


def test_properties_follow_the_config():
    tokenizer = VisionTokenizer(
        small_model(64, channel_multiplier=[1, 2], hidden_size=64, temporal_downsample_factor=2), "test"
    )
    assert (tokenizer.codebook_size, tokenizer.spatial_factor, tokenizer.temporal_factor) == (64, 2, 2)
    assert tokenizer.encode_clips(frames_of(1, 2, 16, 16, 3)).shape == (1, 1, 8, 8)
    assert not tokenizer.model.training
    assert not any(parameter.requires_grad for parameter in tokenizer.model.parameters())


def test_saved_folder_loads_with_its_identity(tmp_path):
    model = small_model(64)
    model.save_pretrained(tmp_path)
    frames = frames_of(1, 32, 32, 3)
    loaded = VisionTokenizer.load(str(tmp_path))
    assert loaded.identity == weights_id(tmp_path) == weights.identity(str(tmp_path))
    np.testing.assert_array_equal(loaded.encode_images(frames), VisionTokenizer(model, "").encode_images(frames))
    halved = VisionTokenizer.load(str(tmp_path), dtype="bfloat16")
    assert halved.decode_images(halved.encode_images(frames)).shape == frames.shape


def test_published_layout_gives_the_same_codes(tmp_path):
    model = small_model(64)
    tensors = published_tensors(model)
    assert [published.renamed(theirs) for theirs in tensors] == list(model.state_dict())
    save_published(tensors, tmp_path)
    frames = frames_of(1, 32, 32, 3)
    loaded = VisionTokenizer.load(str(tmp_path))
    np.testing.assert_array_equal(loaded.encode_images(frames), VisionTokenizer(model, "").encode_images(frames))
    del tensors["encoder.conv_in.weight"]
    save_file(tensors, tmp_path / "model.safetensors")
    with pytest.raises(TokenizerLoadError, match=r"encoder\.conv_in\.weight"):
        VisionTokenizer.load(str(tmp_path))


def test_loading_errors_name_the_path_and_the_next_action(tmp_path):
    with pytest.raises(TokenizerLoadError, match="absent.*no such folder; pass a hub name, a local path"):
        VisionTokenizer.load(str(tmp_path / "absent"))
    with pytest.raises(TokenizerLoadError, match=r"holds no config\.json"):
        VisionTokenizer.load(str(tmp_path))
    small_model(16).save_pretrained(tmp_path)
    settings = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(settings | {"model_type": "emu3"}))
    with pytest.raises(TokenizerLoadError, match=r"save `model\.vqmodel`"):
        VisionTokenizer.load(str(tmp_path))


def test_wrong_input_is_refused_with_the_next_action():
    tokenizer = VisionTokenizer(small_model(16), "test")
    with pytest.raises(ValueError, match="multiples of 8"):
        tokenizer.encode_images(np.zeros((1, 30, 32, 3), np.uint8))
    with pytest.raises(ValueError, match="uint8"):
        tokenizer.encode_images(np.zeros((1, 32, 32, 3), np.float32))
    with pytest.raises(ValueError, match="trim_to_groups"):
        tokenizer.encode_clips(np.zeros((1, 6, 32, 32, 3), np.uint8))
    with pytest.raises(ValueError, match="offset"):
        tokenizer.decode_images(np.full((1, 4, 4), 16))


def test_the_builtin_tokenizer_reads_and_writes():
    tokenizer = VisionTokenizer.load("builtin")
    assert (tokenizer.codebook_size, tokenizer.spatial_factor, tokenizer.temporal_factor) == (4608, 8, 4)
    frames = np.full((1, 64, 64, 3), (219, 234, 254), np.uint8)
    frames[:, 8:32, 16:40] = (220, 38, 38)
    frames[:, 40:64, 16:40] = (34, 160, 70)
    codes = tokenizer.encode_images(frames)
    assert psnr(tokenizer.decode_images(codes), frames) > 25
    assert len(np.unique(codes)) < 40  # flat ground and flat shapes need few codes
