"""LPIPS and FID from weights given by path; random ones here: what the metrics do with them is known all the same."""

import numpy as np
import pytest
import torch
import torchvision
from safetensors.torch import save_file

from tokenmill.tokenizer.vision.evaluation.metrics import ssim
from tokenmill.tokenizer.vision.evaluation.perceptual import Fid, Lpips, WeightsError, structural_dissimilarity
from tokenmill.tokenizer.vision.training.config import VisionLossConfig, VisionTrainConfig
from tokenmill.tokenizer.vision.training.trainee import Training
from tokenmill.tokenizer.vision.vision_tokenizer import to_pixels


@pytest.fixture(scope="module")
def alexnet():
    torch.manual_seed(0)
    return torchvision.models.alexnet(weights=None).state_dict()


def frames(seed=0, count=3):
    return np.random.default_rng(seed).integers(0, 256, (count, 64, 64, 3), np.uint8)


def test_lpips_is_a_distance_and_does_not_hang_on_the_file_format(alexnet, tmp_path):
    torch.save(alexnet, tmp_path / "alex.pth")
    save_file(alexnet, tmp_path / "alex.safetensors")
    lpips = Lpips(tmp_path / "alex.pth", "cpu")
    a = frames()
    slightly = np.clip(a.astype(int) + 8, 0, 255).astype(np.uint8)
    far = frames(1)
    assert lpips(a, a) == [0, 0, 0]
    near, away = lpips(a, slightly), lpips(a, far)
    assert all(0 < one < other for one, other in zip(near, away, strict=True))
    assert Lpips(tmp_path / "alex.safetensors", "cpu")(a, far) == away


def test_lpips_uses_the_given_weights(alexnet, tmp_path):
    torch.save(alexnet, tmp_path / "a.pth")
    torch.manual_seed(1)
    torch.save(torchvision.models.alexnet(weights=None).state_dict(), tmp_path / "b.pth")
    values = [Lpips(tmp_path / name, "cpu")(frames(), frames(1)) for name in ("a.pth", "b.pth")]
    assert values[0] != values[1]


def test_structure_counts_what_edges_lose():
    generator = torch.Generator().manual_seed(0)
    tiles = torch.rand(2, 3, 8, 8, generator=generator) * 2 - 1
    a = tiles.repeat_interleave(8, 2).repeat_interleave(8, 3)
    assert structural_dissimilarity(a, a).item() == pytest.approx(0, abs=1e-5)
    blurred = torch.nn.functional.avg_pool2d(a, 5, 1, 2, count_include_pad=False)
    brighter = a + (blurred - a).square().mean().sqrt()  # as far away by L2
    assert structural_dissimilarity(blurred, a) > 3 * structural_dissimilarity(brighter, a)
    # At its largest scale it is the metric of `tokenizer eval`, but for the border, which that leaves out.
    frames = [np.random.default_rng(seed).integers(0, 256, (21, 21, 3), np.uint8) for seed in (0, 1)]
    noisy = np.clip(frames[0] * 0.8 + frames[1] * 0.2, 0, 255).astype(np.uint8)
    ours = structural_dissimilarity(*(to_pixels(torch.from_numpy(frame[None])) for frame in (frames[0], noisy)))
    assert 1 - ours.item() == pytest.approx(ssim(frames[0], noisy), abs=0.02)


@pytest.mark.parametrize("with_lpips", [False, True])
def test_the_perceptual_loss_draws_pictures_nearer(alexnet, tmp_path, with_lpips):
    torch.save(alexnet, tmp_path / "alex.pth")
    lpips = tmp_path / "alex.pth" if with_lpips else None
    only = {"mse": 0.0, "l1": 0.0, "context": 0.0, "perceptual": 1.0, "lpips": lpips}
    model = {"channel_multiplier": [1, 1]}
    config = VisionTrainConfig(
        model=model, loss=VisionLossConfig(**only), batch=4, crops_px=[32], dtype="float32", lr=3e-3
    )
    training = Training(config, "cpu", compile_trunks=False)
    pixels = to_pixels(torch.from_numpy(frames(count=2)[:, :32, :32]))[:, None]
    losses = [training.step(pixels, step)["loss"] for step in range(120, 150)]
    assert np.mean(losses[-5:]) < 0.8 * losses[0], losses
    with pytest.raises(ValueError, match="perceptual loss alone"):
        VisionLossConfig(lpips=tmp_path / "alex.pth")
    with pytest.raises(ValueError, match="no such file"):
        VisionLossConfig(lpips=tmp_path / "none.pth", perceptual=1.0)
    with pytest.raises(ValueError, match="make crops_px larger"):
        VisionTrainConfig(loss={"perceptual": 1.0}, crops_px=[8])


@pytest.fixture(scope="module")
def inception(tmp_path_factory):
    """Random weights of torch-fidelity's Inception; its class would fetch the real ones."""
    from torch_fidelity import feature_extractor_inceptionv3 as module

    class Random(module.FeatureExtractorInceptionV3):
        def load_state_dict(self, *_):
            pass

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "load_state_dict_from_url", lambda *_, **__: {})
        torch.manual_seed(0)
        model = Random("inception-v3-compat", ["2048"])
    for parameter in model.parameters():
        if parameter.ndim == 4:  # so that the features do not fade on the way
            torch.nn.init.kaiming_normal_(parameter)
    path = tmp_path_factory.mktemp("weights") / "inception.pth"
    torch.save(model.state_dict(), path)
    return path


def test_fid_is_zero_for_equal_sets_and_forgets(inception):
    fid = Fid(inception, "cpu")
    fid.add(frames(), frames()[::-1].copy())
    assert fid.value() == pytest.approx(0, abs=1e-5)
    assert fid.value() is None, "a new set starts empty"
    fid.add(frames(), np.zeros_like(frames()))
    assert fid.value() > 1e-3


def test_wrong_files_are_named_with_the_right_one(alexnet, inception, tmp_path):
    with pytest.raises(WeightsError, match=r"absent\.pth: cannot be read"):
        Lpips(tmp_path / "absent.pth", "cpu")
    with pytest.raises(WeightsError, match=r"inception\.pth: other weights.*give torchvision's AlexNet"):
        Lpips(inception, "cpu")
    torch.save(alexnet, tmp_path / "alex.pth")
    with pytest.raises(WeightsError, match=r"alex\.pth: other weights.*give weights-inception"):
        Fid(tmp_path / "alex.pth", "cpu")
    torch.save(torch.nn.Linear(2, 2), tmp_path / "module.pth")  # a pickle of code
    with pytest.raises(WeightsError, match="cannot be read as safetensors or a .pth of tensors"):
        Fid(tmp_path / "module.pth", "cpu")
