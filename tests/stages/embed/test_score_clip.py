"""Embedding models and heads, on tiny models of the real classes saved to disk: nothing is downloaded."""

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import tiny_clip
import torch
from PIL import Image
from pydantic import ValidationError
from safetensors.numpy import save_file
from transformers import CLIPImageProcessor, CLIPModel

from tokenmill.stages.embed.linear_heads import Head, HeadError, convert_head
from tokenmill.stages.embed.models import ClipLoadError, ClipModel
from tokenmill.stages.embed.score_clip import ClipConfig, ScoreClip, clip_identity
from tokenmill.stages.image.views import make_view, stack_views
from tokenmill.stages.table.columns import MEDIA
from tokenmill.stages.table.rows import without

SIDE = tiny_clip.SIDE


@pytest.fixture(scope="module")
def transformers_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_clip.save(tmp_path_factory.mktemp("clip"))


@pytest.fixture(scope="module")
def open_clip_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    open_clip = pytest.importorskip("open_clip")
    folder = tmp_path_factory.mktemp("open_clip")
    config = {
        "embed_dim": 12,
        "vision_cfg": {"image_size": SIDE, "layers": 1, "width": 16, "patch_size": 8, "head_width": 8},
        "text_cfg": {"context_length": 8, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 1},
    }
    torch.manual_seed(1)
    model = open_clip.CLIP(**config)
    save_file({k: v.numpy() for k, v in model.state_dict().items()}, folder / "open_clip_model.safetensors")
    preprocess = {"mean": [0.5, 0.4, 0.3], "std": [0.2, 0.3, 0.4], "size": SIDE}
    (folder / "open_clip_config.json").write_text(json.dumps({"model_cfg": config, "preprocess_cfg": preprocess}))
    return folder


def picture(width: int, height: int, seed: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    small = Image.fromarray(rng.integers(0, 256, (6, 6, 3), np.uint8))
    return np.asarray(small.resize((width, height), Image.Resampling.BICUBIC))


def head(path: Path, seed: int) -> tuple[str, np.ndarray]:
    weight = np.random.default_rng(seed).normal(size=12).astype(np.float32)
    save_file({"weight": weight, "bias": np.array([0.5], np.float32)}, path)
    return str(path), weight


def rows(views: list[bytes | None], captions: list[str | None]) -> pa.Table:
    schema = without(MEDIA, "fingerprint", "run_id").append(pa.field("views", pa.large_binary()))
    made = [{"kind": "image", "views": v, "source_caption": c} for v, c in zip(views, captions, strict=True)]
    return pa.Table.from_pylist(made, schema=schema)


@pytest.mark.parametrize("size", [(90, 60), (61, 97), (32, 32), (20, 300)])
def test_views_are_what_the_models_own_preprocessing_makes(size, transformers_folder):
    rgb = picture(*size, seed=3)
    processor = CLIPImageProcessor.from_pretrained(transformers_folder, do_normalize=False, do_rescale=False)
    theirs = np.asarray(processor(Image.fromarray(rgb), return_tensors="np")["pixel_values"][0]).transpose(1, 2, 0)
    ours, owners = stack_views(pa.array([make_view(rgb, SIDE), None], pa.large_binary()), SIDE)
    assert owners.tolist() == [0]
    assert np.abs(ours[0].astype(int) - theirs.astype(int)).max() <= 2


def test_embeddings_are_those_of_transformers(transformers_folder):
    model = ClipModel(str(transformers_folder))
    rgb = picture(80, 50, seed=1)
    views, _ = stack_views(pa.array([make_view(rgb, SIDE)], pa.large_binary()), SIDE)
    reference = CLIPModel.from_pretrained(transformers_folder).eval()
    pixels = CLIPImageProcessor.from_pretrained(transformers_folder)(Image.fromarray(rgb), return_tensors="pt")
    with torch.no_grad():
        expected = reference.get_image_features(**pixels).pooler_output[0].numpy()
    assert (model.size_px, model.dim) == (SIDE, 12)
    assert model.embed_images(views)[0] @ (expected / np.linalg.norm(expected)) > 0.999
    long = model.embed_texts(["a red cat " * 30, "a dog"])
    assert long.shape == (2, 12) and np.allclose(np.linalg.norm(long, axis=1), 1, atol=1e-5)


def test_embeddings_are_those_of_open_clip(open_clip_folder):
    import open_clip

    model = ClipModel(str(open_clip_folder))
    rgb = picture(80, 50, seed=2)
    reference, _, preprocess = open_clip.create_model_and_transforms(f"local-dir:{open_clip_folder}")
    with torch.no_grad():
        expected = reference.eval().encode_image(preprocess(Image.fromarray(rgb))[None])[0].numpy()
    views, _ = stack_views(pa.array([make_view(rgb, SIDE)], pa.large_binary()), SIDE)
    assert model.embed_images(views)[0] @ (expected / np.linalg.norm(expected)) > 0.999


def test_scores(tmp_path, transformers_folder):
    (aesthetic, weight), (watermark, _) = head(tmp_path / "a.safetensors", 0), head(tmp_path / "w.safetensors", 1)
    config = ClipConfig(
        model=str(transformers_folder), view_px=SIDE, aesthetic_head=aesthetic, watermark_head=watermark,
        store_embedding=True,
    )  # fmt: skip
    views = [make_view(picture(60, 40, seed), SIDE) for seed in range(4)]
    table = rows([views[0], b"".join(views[1:]), None], ["a cat", None, "a dog"])
    image, clip, unseen = ScoreClip(config, "clip:1")(table).to_pylist()
    model = ClipModel(str(transformers_folder))
    embedded = model.embed_images(stack_views(pa.array([b"".join(views)], pa.large_binary()), SIDE)[0])
    expected = embedded @ weight + 0.5
    assert image["aesthetic"] == pytest.approx(expected[0], abs=1e-5)
    assert clip["aesthetic"] == pytest.approx(expected[1:].min(), abs=1e-5), "the worst of the three frames decides"
    assert image["similarity"] == pytest.approx(float(embedded[0] @ model.embed_texts(["a cat"])[0]), abs=1e-5)
    assert clip["similarity"] is None, "a clip without a caption is like none"
    assert 0 < image["watermark"] < 1 and image["nsfw"] is None
    assert np.linalg.norm(clip["embedding"]) == pytest.approx(1, abs=1e-5)
    assert [row["scored"] for row in (image, clip, unseen)] == ["clip:1", "clip:1", None]
    assert unseen["aesthetic"] is unseen["similarity"] is None and "views" not in unseen


def test_without_a_model_nothing_is_scored():
    (row,) = ScoreClip(ClipConfig())(rows([make_view(picture(40, 40, 0), 224)], ["a cat"])).to_pylist()
    assert row["aesthetic"] is row["similarity"] is row["scored"] is None
    with pytest.raises(ValidationError, match=r"aesthetic_head needs curate\.clip\.model"):
        ClipConfig(aesthetic_head="head.safetensors")


def test_the_identity_follows_the_weights(tmp_path, transformers_folder):
    path, _ = head(tmp_path / "a.safetensors", 0)
    config = ClipConfig(model=str(transformers_folder), aesthetic_head=path)
    before = clip_identity(config)
    moved = tmp_path / "moved"
    moved.mkdir()
    for file in transformers_folder.iterdir():
        (moved / file.name).write_bytes(file.read_bytes())
    assert clip_identity(config.model_copy(update={"model": str(moved)})) == before
    head(tmp_path / "a.safetensors", 5)
    assert clip_identity(config) != before


def test_pickles_and_strangers_are_refused(tmp_path):
    (tmp_path / "pytorch_model.bin").write_bytes(b"\x80\x02}q\x00.")
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(ClipLoadError, match="safetensors"):
        ClipModel(str(tmp_path))
    with pytest.raises(ClipLoadError, match="cannot be loaded"):
        ClipModel(str(tmp_path / "nowhere"))


def test_heads_are_made_from_published_layouts(tmp_path):
    torch.manual_seed(0)
    linear = torch.nn.Linear(12, 1)
    torch.save(linear.state_dict(), tmp_path / "linear.pth")
    sizes = [12, 10, 6, 4, 3, 1]
    chain = torch.nn.ModuleDict(
        {str(2 * i): torch.nn.Linear(a, b) for i, (a, b) in enumerate(zip(sizes, sizes[1:], strict=False))}
    )
    torch.save({f"layers.{k}": v for k, v in chain.state_dict().items()}, tmp_path / "mlp.pth")
    embedded = torch.randn(5, 12)
    with torch.no_grad():
        expected = {"linear": linear(embedded)[:, 0].numpy()}
        x = embedded
        for layer in chain.values():
            x = layer(x)
        expected["mlp"] = x[:, 0].numpy()
    for name, values in expected.items():
        out = tmp_path / f"{name}.safetensors"
        assert convert_head(tmp_path / f"{name}.pth", out) == 12
        assert np.allclose(Head(str(out), 12, False)(embedded.numpy()), values, atol=1e-5)
    with pytest.raises(HeadError, match="12 numbers, the model gives 768"):
        Head(str(tmp_path / "mlp.safetensors"), 768, False)
    (tmp_path / "bad.pth").write_bytes(b"no weights")
    with pytest.raises(HeadError, match="no linear head"):
        convert_head(tmp_path / "bad.pth", tmp_path / "x.safetensors")
    with pytest.raises(HeadError, match="convert-head|safetensors"):
        Head(str(tmp_path / "bad.pth"), 12, False)
