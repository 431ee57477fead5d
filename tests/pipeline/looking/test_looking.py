"""SQL over a catalog counts what its tables hold; previews are small, move, and hold nothing of the file but pixels."""

import io
import shutil

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest
from PIL import Image

from tokenmill.pipeline.catalog.dataset import Dataset
from tokenmill.pipeline.catalog.tables import Catalog, CatalogError
from tokenmill.pipeline.looking.previews import Previews
from tokenmill.pipeline.looking.query import Tables
from tokenmill.pipeline.reports.video_file import write_video


@pytest.fixture(scope="module")
def catalog(root_of_markup, tmp_path_factory):
    """Of a root in which one kept medium stands aside for another."""
    root = tmp_path_factory.mktemp("looking") / "root"
    shutil.copytree(root_of_markup.root, root)
    found = Catalog(str(root))
    one, other = found.tokens.scan(["media_id"])["media_id"].to_pylist()[:2]
    row = {"media_id": one, "duplicate_of": other, "method": "near", "distance": 3.0, "fingerprint": "f", "run_id": "r"}
    found.duplicates.edit(pc.field("media_id") == one, None, {})
    found.duplicates.append(pa.Table.from_pylist([row], found.duplicates.schema), {})
    return found


def test_a_query_sees_every_row_with_its_verdict(catalog):
    tables = Tables(catalog)
    media, duplicates = catalog.media.scan().to_pylist(), catalog.duplicates.scan().to_pylist()
    aside = {row["media_id"]: row["method"] for row in duplicates if row["method"] != "kept"}
    expected = {row["media_id"]: row["reject_reason"] or aside.get(row["media_id"], "kept") for row in media}
    found = tables.rows("select media_id, verdict from judged")
    assert "near" in expected.values() and "kept" in expected.values()
    assert len(found) == len(media) and {row["media_id"]: row["verdict"] for row in found} == expected
    (uri,) = tables.rows("select uri from media where reject_reason is not null limit 1")
    assert tables.value("select count(*) from media where uri = ?", uri["uri"]) >= 1
    for name in Dataset.tables:
        assert tables.value(f"select count(*) from {name}") == getattr(catalog, name).count()


def test_a_root_without_a_catalog_is_said(tmp_path):
    with pytest.raises(CatalogError, match="no catalog there yet"):
        Tables(Catalog(str(tmp_path)))


def test_tables_that_were_never_made_are_empty(tmp_path):
    catalog = Catalog(str(tmp_path))
    catalog.sources.create()
    assert Tables(catalog).rows("select * from judged") == []


def row(kind, uri, **more):
    return {"kind": kind, "uri": str(uri), "member": None, "offset_bytes": None, "file_id": "a", **more}


def test_a_picture_is_small_and_tells_nothing_of_its_file(tmp_path):
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 255, (300, 600, 3), np.uint8))
    exif = Image.Exif()
    exif[0x010E] = "taken at home"
    picture.save(tmp_path / "a.jpg", exif=exif)
    preview = Previews(str(tmp_path)).still(row("image", tmp_path / "a.jpg"), 150)
    opened = Image.open(io.BytesIO(preview))
    assert opened.size == (150, 75) and not opened.getexif() and b"home" not in preview
    assert Previews(str(tmp_path)).still(row("image", tmp_path / "none.jpg"), 150) is None
    (tmp_path / "bad.jpg").write_bytes((tmp_path / "a.jpg").read_bytes()[:300])
    assert Previews(str(tmp_path)).still(row("image", tmp_path / "bad.jpg"), 150) is None
    assert Previews(str(tmp_path)).still(row("text", tmp_path / "a.jpg"), 150) is None


def test_a_clip_moves(tmp_path):
    frames = [np.full((64, 96, 3), 8 * number, np.uint8) for number in range(30)]
    write_video(tmp_path / "a.mp4", frames, 10)
    place = row("video", tmp_path / "a.mp4", start_s=1.0, end_s=3.0)
    opened = Image.open(io.BytesIO(Previews(str(tmp_path)).moving(place, 48, 4)))
    assert opened.n_frames == 4 and opened.size == (48, 32)
    seen = []
    for number in range(4):
        opened.seek(number)
        seen.append(int(np.asarray(opened.convert("L")).mean()))
    assert seen == pytest.approx([8 * t for t in (12, 17, 22, 27)], abs=9)
    still = Image.open(io.BytesIO(Previews(str(tmp_path)).still(place, 48)))
    assert np.asarray(still.convert("L")).mean() == pytest.approx(8 * 20, abs=9)
