"""Training learns, resumes exactly, exports a plain Emu3VQVAE; its quantizers are what they export."""

import json

import numpy as np
import pytest
import torch
import torch.distributed as dist
from pydantic import ValidationError
from torch import multiprocessing
from transformers import Emu3VQVAE

from tokenmill.storage import cpu
from tokenmill.storage.errors import TrainingError
from tokenmill.tokenizer.vision import emu3, vision_tokenizer
from tokenmill.tokenizer.vision.evaluation.metrics import psnr
from tokenmill.tokenizer.vision.nearest import nearest_codes
from tokenmill.tokenizer.vision.training import loop, motion
from tokenmill.tokenizer.vision.training.batches import clip_batch, image_batch, odds
from tokenmill.tokenizer.vision.training.codebook import fit_codebook, patch_ids
from tokenmill.tokenizer.vision.training.config import VisionLossConfig, VisionModelConfig, VisionTrainConfig
from tokenmill.tokenizer.vision.training.losses import FSQ_SPACING, FsqQuantizer, VqQuantizer, spread_loss
from tokenmill.tokenizer.vision.training.parallel import Workers
from tokenmill.tokenizer.vision.training.trainee import Trainee, given_model, new_model

SMALL = VisionModelConfig(channel_multiplier=[1, 1], codebook_size=4096, embed_dim=4)


@pytest.fixture(scope="module")
def data():
    rng = np.random.default_rng(0)
    images = [rng.integers(0, 256, (4, 5, 3), dtype=np.uint8).repeat(8, 0).repeat(8, 1) for _ in range(12)]
    clips = [np.stack([np.roll(image, 2 * t, axis=1) for t in range(6)]) for image in images[:4]]
    return images, clips


def small_config(**changes):
    settings = {"model": SMALL, "batch": 4, "crops_px": [16], "steps": 6, "dtype": "float32"}
    return VisionTrainConfig(**(settings | changes))


def train(config, *arguments, **options):
    """With one checkpoint, at the end, unless `options` say more: to draw its pictures takes as long as two steps."""
    return loop.train(config, *arguments, **({"checkpoint_steps": config.steps} | options))


def of_kind(quantizer, data, folder):
    """Changes of the config that train with this quantizer: kmeans needs weights to start from, and so does motion."""
    if quantizer not in ("kmeans", "motion"):
        return {"model": SMALL.model_copy(update={"quantizer": quantizer})}
    lattice = SMALL if quantizer == "motion" else SMALL.model_copy(update={"codebook_size": 16})
    given = train(small_config(model=lattice, steps=2), *data, str(folder / "given"))
    kmeans = lattice.model_copy(update={"quantizer": "kmeans"})
    if quantizer == "kmeans":
        return {"model": kmeans, "init_from": given}
    wide = kmeans.model_copy(update={"embed_dim": 6, "codebook_size": SMALL.codebook_size + 8})
    return {"model": wide, "init_from": given, "loss": VisionLossConfig(motion_only=True, codes_from_step=2)}


def losses_of(config, data, folder):
    train(config, *data, str(folder))
    return losses(folder)


def losses(folder):
    return [json.loads(line)["loss"] for line in (folder / "log.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("codebook_size, dim", [(4096, 4), (32768, 5), (64, 3), (216, 3), (16, 4)])
def test_fsq_rounding_is_the_nearest_neighbour(codebook_size, dim):
    quantizer = FsqQuantizer(codebook_size, dim)
    codebook = quantizer.codebook_KD
    norms = (codebook**2).sum(1)
    torch.manual_seed(0)
    # Multiples of 1/16 far beyond the lattice: distances are exact in fp32, and a quarter of them are ties.
    z = torch.randint(-64, 65, (4000, dim)) / 16
    quantized, codes = quantizer(z)
    assert torch.equal(codes, nearest_codes(z, codebook, norms))
    assert torch.equal(quantized, codebook[codes])
    # Any other floats, but for those within rounding error of a border.
    z = torch.randn(4000, dim)
    to_border = ((z / FSQ_SPACING + (quantizer.levels - 1) / 2 - 0.5).remainder(1) - 0.5).abs()
    z = z[(to_border < 0.5 - 1e-4).all(1)]
    assert len(z) > 3000
    assert torch.equal(quantizer(z)[1], nearest_codes(z, codebook, norms))


def test_every_fsq_code_is_its_own_nearest():
    quantizer = FsqQuantizer(4096, 4)
    _, codes = quantizer(quantizer.codebook_KD)
    assert torch.equal(codes, torch.arange(4096))


def test_spread_is_lost_by_idle_or_repeated_dimensions():
    torch.manual_seed(0)
    even = FsqQuantizer(4096, 4).codebook_KD.T.view(1, 4, 1, 64, 64)
    assert spread_loss(even, 8) < 1e-6
    repeated, idle = even.clone(), even.clone()
    repeated[:, 1] = repeated[:, 0]
    idle[:, 1] = 0
    assert spread_loss(repeated, 8) > 0.1 and spread_loss(idle, 8) > 0.05
    z = repeated.clone().requires_grad_(True)
    spread_loss(z + 0.01 * torch.randn_like(z), 8).backward()
    assert z.grad.abs().sum() > 0
    with pytest.raises(ValidationError, match="lattice"):
        VisionTrainConfig(model={"quantizer": "vq"}, loss={"spread": 0.1})


def test_gradients_pass_straight_through():
    z = torch.randn(2, 4, 1, 3, 3, requires_grad=True)
    quantized, codes = FsqQuantizer(4096, 4)(z)
    assert quantized.shape == z.shape and codes.shape == (2, 1, 3, 3)
    weight = torch.randn_like(z)
    (quantized * weight).sum().backward()
    assert torch.equal(z.grad, weight)


def test_vq_codebook_follows_the_data_and_restarts_dead_codes():
    torch.manual_seed(0)
    quantizer = VqQuantizer(16, 2)
    centres = torch.randn(16, 2) * 5
    for _ in range(2):
        for step in range(300):
            z = (centres[torch.randint(16, (256,))] + 0.01 * torch.randn(256, 2)).T.view(1, 2, 1, 16, 16)
            _, codes = quantizer(z)
            quantizer.update(z, codes, torch.Generator().manual_seed(step))
        distances = torch.cdist(centres, quantizer.codebook_KD).amin(1)
        assert (distances < 0.1).sum() >= 8 and len(codes.unique()) >= 12
        # The data go elsewhere: without restarts one or two codes would serve all of them from then on.
        centres = centres + 100


def spread_and_alike():
    """4,000 vectors all over a cube, and 36,000 that are nearly one."""
    generator = torch.Generator().manual_seed(0)
    varied = torch.rand(4000, 3, generator=generator) * 2 - 1
    return varied, 0.5 + 0.01 * torch.randn(36000, 3, generator=generator)


def test_a_fitted_codebook_spends_its_codes_on_what_differs():
    varied, alike = spread_and_alike()
    z = torch.cat([varied, alike])
    codebook = fit_codebook(z, torch.arange(len(z)), 256, torch.Generator().manual_seed(1))
    assert ((codebook - 0.5).norm(dim=1) < 0.1).sum() <= 8
    codes = nearest_codes(varied, codebook, (codebook**2).sum(1))
    assert len(codes.unique()) > 240
    lattice = torch.cartesian_prod(*[torch.linspace(-0.84, 0.84, 6)] * 3)  # 216 points where the varied ones are
    errors = [torch.cdist(varied, points).amin(1).square().mean() for points in (codebook, lattice)]
    assert errors[0] < 1.1 * errors[1], errors
    order = torch.randperm(len(z), generator=torch.Generator().manual_seed(2))
    again = fit_codebook(z[order], order, 256, torch.Generator().manual_seed(1))
    torch.testing.assert_close(again, codebook, atol=1e-3, rtol=0)
    with pytest.raises(ValueError, match="2 distinct latents cannot fit 256 codes"):
        few = torch.tensor([[0.0, 1.0], [1.0, 0.0]]).repeat(500, 1)
        fit_codebook(few, torch.arange(1000), 256, torch.Generator())


def test_a_patch_that_repeats_gets_one_code():
    varied, _ = spread_and_alike()
    repeated = torch.tensor([[0.0, 0.0, 0.0], [0.5, 0.5, 0.5]]).repeat_interleave(300, 0)
    z = torch.cat([varied, repeated + 0.08 * torch.randn(600, 3, generator=torch.Generator().manual_seed(3))])
    patches = torch.cat([torch.arange(4000), torch.tensor([4000, 4001]).repeat_interleave(300)])

    def codes_of_repeated(patches):
        codebook = fit_codebook(z, patches, 512, torch.Generator().manual_seed(1))
        codes = nearest_codes(z, codebook, (codebook**2).sum(1))
        shares = [torch.bincount(half).max() / 300 for half in codes[4000:].chunk(2)]
        return min(shares), len(codes.unique())

    apart, (one, used) = codes_of_repeated(torch.arange(len(z))), codes_of_repeated(patches)
    assert apart[0] < 0.3 and one > 0.8 and used > 500, (apart, one, used)


def test_patches_have_one_id_where_their_pixels_are_equal():
    frames = torch.randint(0, 256, (2, 4, 32, 24, 3), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    frames[1, :, 8:16, 16:24] = frames[0, :, :8, :8]
    frames[1, :, 16:24, :8] = frames[0, :, :8, :8]
    frames[1, 3, 20, 4, 1] ^= 1
    ids = patch_ids(vision_tokenizer.to_pixels(frames), 4, 3)
    assert len(ids) == 24 and len(ids.unique()) == 23 and ids[0] == ids[12 + 3 + 2]


def test_the_codes_of_given_weights_are_fitted_once(tmp_path):
    data = list(np.random.default_rng(0).integers(0, 256, (12, 32, 40, 3), dtype=np.uint8)), []
    changes = of_kind("kmeans", data, tmp_path)
    given = changes["init_from"]
    fitted = [train(small_config(steps=steps, **changes), *data, str(tmp_path / str(steps))) for steps in (1, 5)]
    codebooks = [Emu3VQVAE.from_pretrained(uri).quantize.embedding.weight for uri in (given, *fitted)]
    assert torch.equal(codebooks[1], codebooks[2]) and not torch.equal(codebooks[0], codebooks[1])
    trainee = Trainee(small_config(**changes), compile_trunks=False)
    pixels = vision_tokenizer.to_pixels(torch.from_numpy(np.stack(data[0])))[:, None]
    errors = []
    for codebook in codebooks[:2]:
        trainee.quantizer.take(codebook.detach())
        _, z, quantized, _ = trainee(pixels)
        errors.append((z - quantized).square().mean().item())
    assert errors[1] < 0.7 * errors[0], errors
    with pytest.raises(ValidationError, match="name them in init_from"):
        small_config(model=changes["model"])


def test_codes_may_start_late(tmp_path):
    """Until then the latents themselves are decoded; the codes are fitted to what they have become by then."""
    data = list(np.random.default_rng(0).integers(0, 256, (12, 32, 40, 3), dtype=np.uint8)), []
    changes = of_kind("kmeans", data, tmp_path)
    config = small_config(steps=6, loss=VisionLossConfig(codes_from_step=4), **changes)
    model = Emu3VQVAE.from_pretrained(train(config, *data, str(tmp_path / "late")))
    assert not torch.equal(
        model.quantize.embedding.weight, Emu3VQVAE.from_pretrained(changes["init_from"]).quantize.embedding.weight
    )
    trainee = Trainee(config, compile_trunks=False)
    pixels = vision_tokenizer.to_pixels(torch.from_numpy(np.stack(data[0])))[:, None]
    made, z, quantized, _ = trainee(pixels, with_codes=False)
    assert torch.equal(quantized, z) and not torch.equal(made, trainee(pixels)[0])
    at_once = losses_of(small_config(steps=6, **changes), data, tmp_path / "at_once")
    late = losses(tmp_path / "late")
    assert late[0] < at_once[0]  # nothing is rounded yet
    with pytest.raises(ValidationError, match="leaves no step with codes"):
        small_config(steps=4, loss=VisionLossConfig(codes_from_step=4), **changes)
    with pytest.raises(ValidationError, match="leave it at 0"):
        small_config(loss=VisionLossConfig(codes_from_step=1))


def test_wider_weights_start_as_the_given_ones(data, tmp_path):
    given = train(small_config(steps=3), *data, str(tmp_path / "given"))
    wide = SMALL.model_copy(update={"embed_dim": 6, "quantizer": "kmeans"})
    narrow, wider = (
        vision_tokenizer.VisionTokenizer(model, "test")
        for model in (given_model(SMALL, given), given_model(wide, given))
    )
    images, clips = np.stack(data[0]), np.stack([clip[:4] for clip in data[1]])
    latents = Trainee(small_config(model=wide, init_from=given), compile_trunks=False).latents
    z = latents(vision_tokenizer.to_pixels(torch.from_numpy(clips)))
    assert z.shape[1] == 6 and (z.std((0, 2, 3, 4)) > 0.01).all()  # new dimensions say something
    codes = narrow.encode_images(images)
    np.testing.assert_array_equal(wider.decode_images(codes), narrow.decode_images(codes))  # and nothing hears it yet
    clip_codes = narrow.encode_clips(clips)
    np.testing.assert_array_equal(wider.decode_clips(clip_codes), narrow.decode_clips(clip_codes))
    with pytest.raises(ValueError, match="not of the architecture"):
        given_model(wide.model_copy(update={"base_channels": 64}), given)


def test_motion_is_learned_and_stills_keep_their_codes(data, tmp_path):
    changes = of_kind("motion", data, tmp_path)
    loss = VisionLossConfig(motion_only=True, codes_from_step=50)
    config = small_config(**changes | {"loss": loss, "steps": 80, "lr": 1e-2, "video_share": 0.7, "ema": 0.9})
    records = []
    uri = train(config, *data, str(tmp_path / "moving"), on_step=records.append)
    given, moving = (vision_tokenizer.VisionTokenizer.load(each) for each in (changes["init_from"], uri))
    images, clips = np.stack(data[0]), np.stack([clip[:4] for clip in data[1]])
    codes = given.encode_images(images)
    np.testing.assert_array_equal(moving.encode_images(images), codes)
    assert psnr(moving.decode_images(codes), given.decode_images(codes)) > 30
    assert (moving.encode_clips(clips) >= given.codebook_size).mean() > 0.05  # new codes are for what moves
    losses_of_clips = [record["loss"] for record in records if record["kind"] == "clips"]
    assert np.mean(losses_of_clips[25:32]) < 0.7 * np.mean(losses_of_clips[:7]), losses_of_clips
    ours, theirs = moving.model.state_dict(), given.model.state_dict()
    kept = [name for name, weight in theirs.items() if "time" not in name and torch.equal(ours[name], weight)]
    assert sum(name.startswith(("encoder.down_block", "decoder.up_block")) for name in kept) > 20
    assert torch.equal(moving._codebook_KD[: given.codebook_size, :4], given._codebook_KD)
    with pytest.raises(TrainingError, match="here are 0 images"):
        train(config, [], data[1], str(tmp_path / "no_images"))
    with pytest.raises(TrainingError, match="and 0 clips"):
        train(config, data[0], [], str(tmp_path / "no_clips"))
    with pytest.raises(ValidationError, match="video_share between 0 and 1"):
        small_config(**changes | {"video_share": 1.0})
    with pytest.raises(ValueError, match="has embed_dim 4 and codebook_size 4096"):
        train(
            small_config(**changes | {"model": SMALL.model_copy(update={"quantizer": "kmeans"})}), *data, str(tmp_path)
        )
    with pytest.raises(ValidationError, match="take quantizer 'kmeans'"):
        small_config(loss=VisionLossConfig(motion_only=True))


def test_the_trainee_is_the_tokenizer():
    """In fp32 the model in training and the exported one see the same codes and pixels, of stills and of groups."""
    torch.manual_seed(0)
    trainee = Trainee(small_config(), compile_trunks=False)
    frames = np.random.default_rng(0).integers(0, 256, (1, 4, 4, 4, 3), dtype=np.uint8).repeat(8, 2).repeat(8, 3)
    with torch.no_grad():
        pixels = vision_tokenizer.to_pixels(torch.from_numpy(frames))
        made_still, *_, still_codes = trainee(pixels[:, :1])
        made, *_, codes = trainee(pixels)
    trainee.vq.quantize.embedding.weight.data.copy_(trainee.quantizer.codebook_KD)
    tokenizer = vision_tokenizer.VisionTokenizer(trainee.vq, "test")
    np.testing.assert_array_equal(tokenizer.encode_images(frames[:, 0]), still_codes[:, 0].numpy())
    np.testing.assert_array_equal(tokenizer.encode_clips(frames), codes.numpy())
    for ours, theirs in [
        (tokenizer.decode_images(still_codes[:, 0].numpy()), made_still[:, 0]),
        (tokenizer.decode_clips(codes.numpy()), made),
    ]:
        assert np.abs(ours.astype(int) - vision_tokenizer.to_frames(theirs).numpy()).max() <= 1


def test_an_untrained_model_starts_well():
    """Latents at the lattice's scale in every channel, and time handed through: a still equals its repeated clip."""
    torch.manual_seed(0)
    model = new_model(VisionModelConfig(channel_multiplier=[1, 1, 2, 2]))
    pixels = torch.rand(4, 3, 8, 8).repeat_interleave(8, 2).repeat_interleave(8, 3) * 2 - 1
    with torch.no_grad():
        latent = emu3.encode_trunk(model, pixels)
        z = emu3.encode_time(model, latent.unsqueeze(2).expand(-1, -1, 4, -1, -1))
    spread = z.std((0, 2, 3, 4))
    assert (spread > 0.3).all() and (spread < 2.5).all()
    for channel in range(4):
        pair = torch.stack([latent[:, channel].flatten(), z[:, channel].flatten()])
        assert torch.corrcoef(pair)[0, 1] > 0.9


@pytest.fixture(scope="module")
def trained(data, tmp_path_factory):
    folder = tmp_path_factory.mktemp("vq")
    records = []
    model = train(small_config(steps=40, lr=3e-3), *data, str(folder), on_step=records.append)
    return folder, model, records


def test_training_learns(trained):
    _, _, records = trained
    first, last = (np.mean([record["loss"] for record in part]) for part in (records[:5], records[-10:]))
    assert last < 0.75 * first
    assert {record["kind"] for record in records} == {"images", "clips"}
    assert records[-1]["codes_used"] > 1 and records[-1]["perplexity"] > 1


def test_the_export_is_a_plain_emu3_vqvae(trained, data):
    folder, model_folder, records = trained
    plain, report = Emu3VQVAE.from_pretrained(model_folder, output_loading_info=True)
    assert not report["missing_keys"] and not report["unexpected_keys"]
    assert torch.equal(plain.quantize.embedding.weight, FsqQuantizer(4096, 4).codebook_KD)
    for module in plain.modules():
        if isinstance(module, torch.nn.BatchNorm3d):
            assert not module.running_mean.any() and (module.running_var == 1).all()
    tokenizer = vision_tokenizer.VisionTokenizer.load(str(model_folder))
    assert tokenizer.spatial_factor == 2
    images = np.stack(data[0][:2])
    assert tokenizer.decode_images(tokenizer.encode_images(images)).shape == images.shape
    assert len(losses(folder)) == len(records) == 40
    for name in ("loss.png", "reconstructions.png"):
        assert (folder / name).stat().st_size > 1000


class StoppedError(Exception):
    pass


@pytest.mark.parametrize("quantizer, gan", [("fsq", 0.0), ("fsq", 0.1), ("vq", 0.0), ("kmeans", 0.0), ("motion", 0.0)])
def test_a_resumed_run_repeats_the_uninterrupted_one(data, tmp_path, monkeypatch, quantizer, gan):
    monkeypatch.setattr(motion, "_STILLS_WITHIN", 0.0)  # two steps do not bring stills to rest
    loss = VisionLossConfig(gan=gan, gan_from_step=2)
    config = small_config(**{"loss": loss} | of_kind(quantizer, data, tmp_path))
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    model = train(config, *data, str(whole), checkpoint_steps=3)

    def kill(record):
        if record["step"] == 5:
            raise StoppedError

    with pytest.raises(StoppedError):
        train(config, *data, str(broken), on_step=kill, checkpoint_steps=3)
    assert len(losses(broken)) == 5
    steps = []
    resumed = train(config, *data, str(broken), on_step=lambda record: steps.append(record["step"]))
    assert steps == [4, 5, 6]
    assert losses(broken) == losses(whole)
    ours, theirs = (Emu3VQVAE.from_pretrained(folder).state_dict() for folder in (model, resumed))
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_every_choice_of_the_config_is_acted_upon(data, tmp_path):
    def first_losses(name, **changes):
        folder = tmp_path / name
        train(small_config(steps=2, **changes), *data, str(folder))
        return losses(folder)

    plain = first_losses("plain")
    for name, changes in {
        "mse": {"loss": VisionLossConfig(mse=0.5)},
        "l1": {"loss": VisionLossConfig(l1=0.5)},
        "commitment": {"loss": VisionLossConfig(commitment=0.0)},
        "gan": {"loss": VisionLossConfig(gan=0.1, gan_from_step=0)},
        "lr": {"lr": 1e-2},
        "seed": {"seed": 1},
        "crops_px": {"crops_px": [32]},
        "larger crops": {"crops_px": [16, 16, 16, 32]},
        "batch": {"batch": 8},
        "video_share": {"video_share": 1.0},
        "dtype": {"dtype": "bfloat16"},
    }.items():
        assert first_losses(name, **changes) != plain, name


def test_images_alone_and_clips_alone(data, tmp_path):
    images, clips = data
    train(small_config(steps=2), images, [], str(tmp_path / "images"))
    train(small_config(steps=2), [], clips, str(tmp_path / "clips"))
    with pytest.raises(ValueError, match="give at least one"):
        train(small_config(), [], [], str(tmp_path / "none"))
    with pytest.raises(ValueError, match="3 frames"):
        train(small_config(), [], [clips[0][:3]], str(tmp_path / "short"))


def test_auto_goes_on_in_the_dtype_of_the_checkpoint(data, tmp_path, monkeypatch):
    monkeypatch.setattr(cpu, "multiplies_bf16", lambda: False)
    train(small_config(dtype="bfloat16", steps=3), *data, str(tmp_path))
    before = (tmp_path / "checkpoint.pt").stat().st_mtime_ns
    train(small_config(dtype="auto", steps=3), *data, str(tmp_path))
    assert (tmp_path / "checkpoint.pt").stat().st_mtime_ns == before, "trained anew, in another dtype"
    with pytest.raises(TrainingError, match="another config"):
        train(small_config(dtype="float32", steps=3), *data, str(tmp_path))


def test_a_folder_of_another_config_is_refused(data, tmp_path):
    train(small_config(steps=3), *data, str(tmp_path))
    with pytest.raises(ValueError, match="another config"):
        train(small_config(steps=4), *data, str(tmp_path))
    with pytest.raises(ValueError, match="other media"):
        train(small_config(steps=3), *data, str(tmp_path), data_id="more")


def _worker(rank: int, folder: str, data, configs: dict[str, VisionTrainConfig]) -> None:
    torch.set_num_threads(1)
    motion._STILLS_WITHIN = 0.0
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    for name, config in configs.items():
        train(config, *data, f"{folder}/{name}/two", workers=Workers(rank, 2))
    dist.destroy_process_group()


@pytest.mark.service
def test_two_workers_train_like_one(data, tmp_path, monkeypatch):
    """Losses that look at one picture at a time: the same steps, up to the order of sums; with every quantizer."""
    monkeypatch.setattr(motion, "_STILLS_WITHIN", 0.0)  # two steps do not bring stills to rest
    loss = VisionLossConfig(context=0.0)
    configs = {
        name: small_config(batch=8, steps=4, **{"loss": loss} | of_kind(name, data, tmp_path / name))
        for name in ("fsq", "vq", "kmeans", "motion")
    }
    multiprocessing.spawn(_worker, (str(tmp_path), data, configs), nprocs=2)
    for name, config in configs.items():
        train(config, *data, str(tmp_path / name / "one"))
        alone, shared = losses(tmp_path / name / "one"), losses(tmp_path / name / "two")
        np.testing.assert_allclose(shared, alone, rtol=1e-4, err_msg=name)
    with pytest.raises(ValueError, match="cannot be shared by 3 workers"):
        train(small_config(batch=4), *data, str(tmp_path / "three"), workers=Workers(0, 3))


def test_batches_are_crops_of_the_data():
    rng = np.random.default_rng(0)
    image = np.arange(40 * 30, dtype=np.uint16).reshape(40, 30)
    coded = np.stack([image % 256, image // 256, image * 0], -1).astype(np.uint8)
    batch = image_batch([coded], 20, 16, rng)
    values = batch[..., 0].astype(int) + 256 * batch[..., 1].astype(int)
    flipped = 0
    for crop in values:
        if crop[0, 1] < crop[0, 0]:
            crop, flipped = crop[:, ::-1], flipped + 1
        top, left = divmod(int(crop[0, 0]), 30)
        np.testing.assert_array_equal(crop, image[top : top + 16, left : left + 16])
    assert 0 < flipped < 20
    clip = np.stack([np.full((20, 24, 3), t, np.uint8) for t in range(7)])
    batch = clip_batch([clip], 30, 16, 4, rng)
    assert batch.shape == (30, 4, 16, 16, 3)
    assert (np.diff(batch[..., 0, 0, 0].astype(int), axis=1) == 1).all()
    assert set(batch[:, 0, 0, 0, 0]) == {0, 1, 2, 3}
    assert image_batch([coded[:9, :12]], 2, 16, rng).shape == (2, 16, 16, 3)


def test_crops_are_drawn_evenly_from_what_is_large_enough(data, tmp_path):
    media = [np.zeros((4, 32, 64, 3), np.uint8), np.zeros((4, 16, 64, 3), np.uint8)]
    np.testing.assert_allclose(odds(media, 16), [2 / 3, 1 / 3])
    np.testing.assert_allclose(odds(media, 32), [1, 0])
    np.testing.assert_allclose(odds(media, 48), [2 / 3, 1 / 3])
    assert odds([], 16).shape == (0,)
    seen = []

    class Watching(Workers):
        def share(self, batch):
            seen.append(tuple(batch.shape[:-1]))
            return super().share(batch)

    train(small_config(batch=8, crops_px=[16, 32], steps=20, video_share=0.5), *data, str(tmp_path), workers=Watching())
    assert set(seen) == {(8, 1, 16, 16), (2, 1, 32, 32), (2, 4, 16, 16), (1, 4, 32, 32)}


@pytest.mark.parametrize(
    "settings, words",
    [
        ({"model": {"codebook_size": 5000}}, "8 \\*\\* 4 = 4096"),
        ({"model": {"codebook_size": 81}}, "even number"),
        ({"crops_px": [64, 60]}, "60 is no multiple of the spatial factor 8"),
        ({"loss": {"decoder_only": True}}, "name them in init_from"),
        ({"model": {"base_channels": 48}}, "multiple of 32"),
        ({"model": {"quantiser": "fsq"}}, "quantiser"),
    ],
)
def test_impossible_configs_say_what_to_change(settings, words):
    with pytest.raises(ValidationError, match=words):
        VisionTrainConfig.model_validate(settings)


def latents_moved_by_the_context(model, images):
    """Mean square change of a patch's latents when the rest of the picture is exchanged."""
    pixels = vision_tokenizer.to_pixels(torch.from_numpy(np.stack([image[:16, :16] for image in images])))[:, None]
    other = pixels.roll(1, 0).clone()
    other[..., :8, :8] = pixels[..., :8, :8]
    trainee = Trainee(small_config(), compile_trunks=False)
    trainee.vq = model
    with torch.no_grad():
        one, two = trainee.latents(pixels), trainee.latents(other)
    half = one.shape[-1] // 2
    return float((one - two)[..., :half, :half].square().mean() / one.var())


def test_the_context_loss_makes_codes_hang_less_on_their_surroundings(data, tmp_path):
    images, clips = data
    moved = {}
    for context in (0.0, 4.0):
        config = small_config(steps=24, loss=VisionLossConfig(context=context))
        folder = train(config, images, clips, str(tmp_path / str(context)))
        moved[context] = latents_moved_by_the_context(Emu3VQVAE.from_pretrained(folder).eval(), images)
    assert moved[4.0] < 0.7 * moved[0.0], moved


def test_training_starts_from_given_weights(data, tmp_path):
    images, clips = data
    first = train(small_config(), images, clips, str(tmp_path / "first"))
    given = Trainee(small_config(init_from=str(first)), compile_trunks=False).vq
    trained = Emu3VQVAE.from_pretrained(first)
    assert all(
        torch.equal(a, b) for a, b in zip(given.state_dict().values(), trained.state_dict().values(), strict=True)
    )
    other = SMALL.model_copy(update={"num_res_blocks": 2})
    with pytest.raises(ValueError, match="not of the architecture"):
        Trainee(small_config(init_from=str(first), model=other), compile_trunks=False)


@pytest.mark.parametrize("quantizer", ["fsq", "vq", "kmeans"])
def test_a_decoder_trained_alone_keeps_every_code(data, tmp_path, quantizer):
    images, clips = data
    changes = of_kind(quantizer, data, tmp_path)
    first = train(small_config(**changes), images, clips, str(tmp_path / "first"))
    further = small_config(**changes | {"init_from": first}, loss={"decoder_only": True}, steps=20, lr=3e-3)
    second = train(further, images, clips, str(tmp_path / "second"))
    before, after = vision_tokenizer.VisionTokenizer.load(first), vision_tokenizer.VisionTokenizer.load(second)
    pictures, moving = np.stack(images), np.stack(clips)[:, :4]
    codes = before.encode_images(pictures)
    np.testing.assert_array_equal(after.encode_images(pictures), codes)
    np.testing.assert_array_equal(after.encode_clips(moving), before.encode_clips(moving))
    errors = [np.square(each.decode_images(codes).astype(float) - pictures).mean() for each in (before, after)]
    assert errors[1] < 0.9 * errors[0], errors
    wider = further.model_copy(update={"model": further.model.model_copy(update={"embed_dim": 6})})
    with pytest.raises(ValueError, match="set tokenizer.train.model.embed_dim to its 4"):
        train(wider, images, clips, str(tmp_path / "wider"))


def test_a_learned_codebook_is_no_lattice(data, tmp_path):
    learned = SMALL.model_copy(update={"quantizer": "vq"})
    folder = train(small_config(model=learned, steps=2), *data, str(tmp_path))
    assert Trainee(small_config(model=learned, init_from=folder), compile_trunks=False).quantizer.codebook_KD.any()
    with pytest.raises(ValueError, match="set tokenizer.train.model.quantizer to 'kmeans'"):
        Trainee(small_config(init_from=folder), compile_trunks=False)
