"""Small token shards, jobs and configs for the tests of training."""

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from tokenmill.tokenizer.shards import TOKENS, write_parquet
from tokenmill.training.config import DataConfig, ModelConfig, OptimizerConfig, TrainConfig
from tokenmill.training.job import TrainJob

CODEBOOK = 64
COLOURS = ("red", "green", "blue", "black")


def _row(number: int, rng: np.random.Generator, **changes: Any) -> dict[str, Any]:
    """A row of the `tokens` table: mostly images of 3x4 or 4x3 codes, every fourth a video."""
    is_video = number % 4 == 3
    t, h, w = (2, 3, 3) if is_video else (1, *((3, 4) if number % 2 else (4, 3)))
    return {
        "media_id": hashlib.blake2b(str(number).encode(), digest_size=16).hexdigest(),
        "kind": "video" if is_video else "image",
        "codes": rng.integers(0, CODEBOOK, t * h * w).tolist(),
        "grid_t": t,
        "grid_h": h,
        "grid_w": w,
        "fps": 8.0 if is_video else None,
        "frames_trimmed": 0,
        "caption": f"a {COLOURS[number % 4]} square, {number} of many" if number % 5 else None,
        "reject_reason": None,
        "fingerprint": "f" * 16,
        "run_id": "test",
    } | changes


def _write_shard(path: Path, rows: list[dict[str, Any]], row_group_rows: int = 5) -> str:
    """One Parquet shard of the `tokens` table."""
    write_parquet(pa.Table.from_pylist(rows, schema=TOKENS), str(path), row_group_rows)
    return str(path)


def _small_config(**optimizer: Any) -> TrainConfig:
    """A model of 20 thousand weights; two packs of about six documents per step."""
    return TrainConfig(
        model=ModelConfig(
            hidden_size=32, num_layers=2, num_heads=2, num_kv_heads=1, intermediate_size=48, dropout=0.1
        ),
        data=DataConfig(
            context_tokens=64, pack_tokens=192, batch_packs=2, text_vocab_size=300, understanding_share=0.3,
            null_caption_share=0.2,
        ),
        optimizer=OptimizerConfig(**({"steps": 8, "lr": 3e-3, "warmup_steps": 2} | optimizer)),
        dtype="float32",
    )  # fmt: skip


@pytest.fixture(scope="session")
def token_row() -> Callable[..., dict[str, Any]]:
    """(number, rng, **changes) -> a row of the `tokens` table."""
    return _row


def _text_row(name: str, text: str | None, **changes: Any) -> dict[str, Any]:
    """A text document as a row of the `tokens` table."""
    return {
        "media_id": hashlib.blake2b(name.encode(), digest_size=16).hexdigest(),
        "kind": "text",
        "codes": [],
        "grid_t": 0,
        "grid_h": 0,
        "grid_w": 0,
        "fps": None,
        "frames_trimmed": None,
        "caption": text,
        "reject_reason": None,
        "fingerprint": "e" * 16,
        "run_id": "test",
    } | changes


def _some_texts(count: int) -> list[dict[str, Any]]:
    """Documents of 4 to 300 words, most longer than a context of 64 tokens."""
    rng = np.random.default_rng(7)
    words = ("the", "mill", "turns", "grain", "into", "flour", "as", "water", "falls", "on", "its", "wheel,")
    lengths = rng.integers(4, 301, count).tolist()
    return [
        _text_row(f"text {n}", " ".join(words[k] for k in rng.integers(0, len(words), length)) + ".")
        for n, length in enumerate(lengths)
    ]


@pytest.fixture(scope="session")
def text_row() -> Callable[..., dict[str, Any]]:
    """(name, text, **changes) -> a text document as a row of the `tokens` table."""
    return _text_row


@pytest.fixture(scope="session")
def some_texts() -> Callable[[int], list[dict[str, Any]]]:
    """(count) -> rows of that many text documents."""
    return _some_texts


@pytest.fixture(scope="session")
def mixed_uris(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Two shards: 20 media and 5 text documents in row groups of 5 side by side; 10 text documents more."""
    folder = tmp_path_factory.mktemp("mixed")
    rng = np.random.default_rng(0)
    media, texts = [_row(number, rng) for number in range(20)], _some_texts(15)
    beside = [row for n in range(5) for row in (*media[4 * n : 4 * n + 4], texts[n])]
    return [_write_shard(folder / f"part-{i}.parquet", rows) for i, rows in enumerate((beside, texts[5:]))]


@pytest.fixture(scope="session")
def write_shard() -> Callable[..., str]:
    """(path, rows, row_group_rows=5) -> the URI of the shard written there."""
    return _write_shard


@pytest.fixture(scope="session")
def small_config() -> Callable[..., TrainConfig]:
    """(**optimizer fields) -> a config of a tiny model."""
    return _small_config


@pytest.fixture(scope="session")
def shard_uris(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Two shards of 20 rows in row groups of 5."""
    folder = tmp_path_factory.mktemp("tokens")
    rng = np.random.default_rng(0)
    rows = [_row(number, rng) for number in range(40)]
    return [_write_shard(folder / f"part-{i}.parquet", rows[20 * i : 20 * i + 20]) for i in range(2)]


@pytest.fixture()
def make_job(shard_uris: list[str], tmp_path: Path) -> Callable[..., TrainJob]:
    """A job on the two shards, in a folder of that name."""

    def make(folder: str = "run", config: TrainConfig | None = None, **changes: Any) -> TrainJob:
        return TrainJob(
            config or _small_config(),
            shard_uris=changes.pop("shard_uris", shard_uris),
            codebook_size=CODEBOOK,
            run_uri=str(tmp_path / folder),
            **changes,
        )

    return make
