"""What a catalog says of media that are held out together: clips of one video, copies it knows, copies it does not."""

import numpy as np
import pyarrow as pa
import pytest

from tokenmill.pipeline.catalog.shard_files import SCHEMAS
from tokenmill.pipeline.catalog.tables import Catalog
from tokenmill.pipeline.run.families import families, near_trained
from tokenmill.stages.select.duplicates import DUPLICATES
from tokenmill.stages.table.columns import MEDIA
from tokenmill.training.data.held_out import is_held_out
from tokenmill.training.data.spoken import media_key

SHARE = 0.3


def keys(*names):
    return np.array([media_key(name) for name in names], np.uint64)


def some(held, count, prefix=""):
    """Names of media that are held out, or are not."""
    return [name for n in range(99) if is_held_out(keys(name := f"{prefix}{n}"), SHARE)[0] == held][:count]


@pytest.fixture
def catalog(tmp_path):
    made = Catalog(str(tmp_path / "root"))
    made.create()
    return made


def add(catalog, name, file_id=None, phash=None, is_tokenized=True):
    known = {"media_id": name, "file_id": file_id or name, "kind": "image", "uri": name, "phash": phash}
    known |= {"fingerprint": "p", "run_id": "r"}
    catalog.media.append(pa.Table.from_pylist([known], schema=MEDIA), {})
    if is_tokenized:
        row = {"media_id": name, "kind": "image", "codes": [1], "fingerprint": "f", "run_id": "r"}
        catalog.tokens.append(pa.Table.from_pylist([row], schema=SCHEMAS["tokens"]), {})


def told(catalog):
    rows = families(catalog, SHARE)
    assert rows["media"].to_pylist() == sorted(rows["media"].to_pylist())
    return {row["media"]: (row["family"], row["is_near"]) for row in rows.to_pylist()}


def test_clips_are_of_the_family_of_their_video(catalog):
    add(catalog, "still")
    for clip in ("one", "two"):
        add(catalog, clip, "video")
    assert told(catalog) == {media_key(clip): (media_key("video"), False) for clip in ("one", "two")}


def test_a_copy_is_of_the_family_of_the_one_that_stands_for_it(catalog):
    """Which an older version of the tokens may still hold."""
    for name, file_id in (("copy", "file of copy"), ("clip", "video")):
        add(catalog, name, file_id)
    row = {"media_id": "copy", "duplicate_of": "clip", "method": "near", "fingerprint": "d", "run_id": "r"}
    catalog.duplicates.append(pa.Table.from_pylist([row], schema=DUPLICATES), {})
    assert told(catalog) == {media_key(name): (media_key("video"), False) for name in ("copy", "clip")}


def test_a_held_out_medium_like_a_trained_one_is_named(catalog):
    (held, lonely, third), (trained, unused) = some(True, 3), some(False, 2)
    add(catalog, held, phash=f"{0b111111:016x}")
    add(catalog, trained, phash=f"{0:016x}")
    add(catalog, lonely, phash=f"{2**40 - 1:016x}")
    add(catalog, third, phash=f"{2**40 - 2:016x}")  # like one that is held out, too
    add(catalog, unused, phash=f"{2**40 - 1:016x}", is_tokenized=False)
    assert told(catalog) == {media_key(held): (media_key(held), True)}


@pytest.mark.parametrize("num", [10, 3_000])
def test_near_ones_are_those_that_comparing_all_with_all_finds(num):
    rng = np.random.default_rng(0)
    hashes = rng.integers(0, 2**64, num, np.uint64)
    flipped = [rng.choice(64, rng.integers(0, 12), replace=False).tolist() for _ in range(num)]
    flips = np.array([sum(1 << bit for bit in bits) for bits in flipped], np.uint64)
    hashes = np.concatenate([hashes, hashes ^ flips])
    is_held = rng.random(2 * num) < 0.2
    far = np.bitwise_count(hashes[:, None] ^ hashes[~is_held]).min(1)
    expected = is_held & (far <= 6)
    assert 0 < expected.sum() < is_held.sum() or num == 10
    assert np.array_equal(near_trained(hashes, is_held), expected)
