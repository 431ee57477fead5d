import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from transformers import Emu3VQVAE, Emu3VQVAEConfig

from tokenmill.stages.tokenize import tokenize
from tokenmill.stages.tokenize.load_frames import LoadFrames
from tokenmill.stages.tokenize.tokenize import Tokenize, TokenizeConfig, device_of_worker
from tokenmill.tokenizer.shards import TOKENS
from tokenmill.tokenizer.vision.vision_tokenizer import VisionTokenizer

FIELDS = [pa.field(name, pa.string()) for name in ("media_id", "kind", "uri", "member", "caption")]
SCHEMA = pa.schema([*FIELDS, pa.field("start_s", pa.float64()), pa.field("end_s", pa.float64()), *LoadFrames.writes])


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small random tokenizer of the published class."""
    torch.manual_seed(0)
    config = Emu3VQVAEConfig(
        codebook_size=512, base_channels=32, channel_multiplier=[1, 1, 2, 2], num_res_blocks=1, hidden_size=64
    )
    path = tmp_path_factory.mktemp("vq")
    Emu3VQVAE(config).save_pretrained(path)
    return path


def _row(index: int, shape: tuple[int, int, int], reject_reason: str | None = None) -> dict:
    frames = np.random.default_rng(index).integers(0, 256, (*shape, 3), np.uint8)
    kind = "image" if shape[0] == 1 else "video"
    row: dict[str, Any] = {
        "media_id": str(index),
        "kind": kind,
        "uri": "u",
        "caption": "c",
        "reject_reason": reject_reason,
    }
    if reject_reason is None:
        row |= {"frames": frames.tobytes(), "frames_t": shape[0], "frames_h": shape[1], "frames_w": shape[2]}
        row |= {"fps": None, "frames_trimmed": None} if kind == "image" else {"fps": 8.0, "frames_trimmed": 1}
    return row


@pytest.fixture
def table() -> pa.Table:
    shapes = [(1, 48, 64), (8, 32, 32), (1, 64, 48), (1, 48, 64), (4, 32, 32), (1, 48, 64), (8, 32, 32)]
    rows = [_row(i, shape) for i, shape in enumerate(shapes)] + [_row(9, (1, 8, 8), "corrupt")]
    return pa.Table.from_pylist(rows, schema=SCHEMA)


def test_tokenize(folder: Path, table: pa.Table, check_stage) -> None:
    output = check_stage(Tokenize(TokenizeConfig(model=str(folder), dtype="float32")), table)
    expected = [field for field in TOKENS if field.name not in ("fingerprint", "run_id")]
    assert output.column_names == [field.name for field in expected]
    assert [output.schema.field(field.name).type for field in expected] == [field.type for field in expected]
    tokenizer = VisionTokenizer.load(str(folder), "cpu", "float32")
    for row, given in zip(output.to_pylist(), table.to_pylist(), strict=True):
        if given["frames"] is None:
            assert row["codes"] is None and row["grid_t"] is None and row["reject_reason"] == "corrupt"
            continue
        shape = (given["frames_t"], given["frames_h"], given["frames_w"], 3)
        frames = np.frombuffer(given["frames"], np.uint8).reshape(shape).copy()
        alone = tokenizer.encode_images(frames) if shape[0] == 1 else tokenizer.encode_clips(frames[None])[0]
        assert (row["grid_t"], row["grid_h"], row["grid_w"]) == alone.shape
        assert row["codes"] == alone.ravel().tolist()
        assert (row["caption"], row["fps"]) == ("c", given["fps"])


def test_how_many_are_stacked_changes_no_code(folder: Path, table: pa.Table, monkeypatch: pytest.MonkeyPatch) -> None:
    stage = Tokenize(TokenizeConfig(model=str(folder), dtype="float32"))
    outputs = [stage(table)]
    for stacked_px in (1, 7000):
        monkeypatch.setattr(tokenize, "_STACKED_PX", stacked_px)
        outputs.append(stage(table))
    assert outputs[0].equals(outputs[1]) and outputs[0].equals(outputs[2])


def test_batches_hold_one_size_and_are_full(folder: Path, table: pa.Table, monkeypatch: pytest.MonkeyPatch) -> None:
    stage = Tokenize(TokenizeConfig(model=str(folder), dtype="float32"))
    shapes = []

    def watch(name: str) -> None:
        encode = getattr(stage._tokenizer, name)

        def watched(frames: np.ndarray) -> np.ndarray:
            shapes.append(frames.shape)
            return encode(frames)

        monkeypatch.setattr(stage._tokenizer, name, watched)

    watch("encode_images")
    watch("encode_clips")
    stage(table)
    assert sorted(shapes) == [(1, 4, 32, 32, 3), (1, 64, 48, 3), (2, 8, 32, 32, 3), (3, 48, 64, 3)]


def test_codes_differ_between_media(folder: Path, table: pa.Table) -> None:
    codes = Tokenize(TokenizeConfig(model=str(folder), dtype="float32"))(table)["codes"].to_pylist()
    assert codes[0] != codes[3] and codes[1] != codes[6]


@pytest.mark.parametrize(("given", "expected"), [(["0"], "cuda"), ([], "cpu")])
def test_a_worker_uses_a_gpu_only_when_given_one(
    given: list[str], expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    context = SimpleNamespace(get_accelerator_ids=lambda: {"GPU": given})
    ray = SimpleNamespace(is_initialized=lambda: True, get_runtime_context=lambda: context)
    monkeypatch.setitem(sys.modules, "ray", ray)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert device_of_worker() == expected
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert device_of_worker() == "cpu"
