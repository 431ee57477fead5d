import gc
import os
from pathlib import Path

import pyarrow as pa
import pytest
from PIL import Image

from tokenmill import storage
from tokenmill.stages.read.read import Read, ReadConfig
from tokenmill.stages.table.columns import MEDIA
from tokenmill.storage.identity import content_id


@pytest.fixture
def files(tmp_path: Path, texture, write_video) -> list[Path]:
    Image.fromarray(texture(64, 48)).save(tmp_path / "good.jpg")
    (tmp_path / "wrong.png").write_bytes((tmp_path / "good.jpg").read_bytes())
    (tmp_path / "empty.png").write_bytes(b"")
    (tmp_path / "page.jpg").write_bytes(b"<!DOCTYPE html><title>404</title>")
    (tmp_path / "drawing.svg").write_bytes(b'<svg xmlns="http://www.w3.org/2000/svg"/>')
    video = write_video("clip.mp4", [texture(64, 48)] * 3)
    names = ["good.jpg", "wrong.png", "empty.png", "page.jpg", "drawing.svg", "missing.jpg"]
    return [tmp_path / name for name in names] + [video, tmp_path]


def test_read(files: list[Path], listed, check_stage) -> None:
    output = check_stage(Read(ReadConfig()), listed(*files, caption="a cat"))
    assert output.column_names == [n for n in MEDIA.names if n not in ("fingerprint", "run_id")] + [
        "content",
        "path",
        "path_is_temporary",
        "ends_container",
    ]
    rows = output.to_pylist()
    reasons = [row["reject_reason"] for row in rows]
    assert reasons[:6] == [None, None, "empty_file", "unknown_format", "unsupported_format", "vanished"]
    assert reasons[6:] == [None, "unreadable"]
    good, wrong = rows[:2]
    data = files[0].read_bytes()
    assert good["media_id"] == good["file_id"] == wrong["media_id"] == content_id([data])
    assert (good["content"], good["format"], good["extension_fits"]) == (data, "jpeg", True)
    assert (wrong["format"], wrong["extension_fits"], wrong["size_bytes"]) == ("jpeg", False, len(data))
    assert wrong["container_format"] is None
    assert rows[6]["path"] == str(files[6]) and rows[6]["content"] is None
    assert rows[5]["media_id"] != rows[7]["media_id"]
    assert all(row["source_caption"] == "a cat" and row["member"] is None for row in rows)
    nameless = [row["content"] is None and row["path"] is None for row in rows]
    assert nameless == [False, False, True, True, True, True, False, True]


def test_extra_columns_pass_through(files: list[Path], listed) -> None:
    table = listed(files[0]).append_column("etag", pa.array(["x"]))
    assert Read(ReadConfig())(table)["etag"].to_pylist() == ["x"]


def test_limits(files: list[Path], listed) -> None:
    config = ReadConfig(max_image_bytes=100, max_video_bytes=100)
    rows = Read(config)(listed(files[0], files[6])).to_pylist()
    assert [row["reject_reason"] for row in rows] == ["too_many_bytes"] * 2
    assert rows[0]["content"] is None and rows[0]["media_id"] == content_id([files[0].read_bytes()])


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_forbidden_file(files: list[Path], listed) -> None:
    files[0].chmod(0)
    assert Read(ReadConfig())(listed(files[0]))["reject_reason"].to_pylist() == ["unreadable"]


def test_remote_videos_are_spooled(files: list[Path], listed, s3: str) -> None:
    storage.write_bytes(f"{s3}/a.jpg", files[0].read_bytes())
    storage.write_bytes(f"{s3}/b.mp4", files[6].read_bytes())
    read = Read(ReadConfig())
    rows = read(listed(f"{s3}/a.jpg", f"{s3}/b.mp4", f"{s3}/gone.jpg")).to_pylist()
    assert rows[0]["content"] == files[0].read_bytes()
    spooled = Path(rows[1]["path"])
    assert rows[1]["path_is_temporary"] and spooled.read_bytes() == files[6].read_bytes()
    assert rows[1]["media_id"] == content_id([files[6].read_bytes()])
    assert rows[2]["reject_reason"] == "vanished"
    small = Read(ReadConfig(max_video_bytes=100))(listed(f"{s3}/b.mp4")).to_pylist()
    assert small[0]["reject_reason"] == "too_many_bytes" and small[0]["path"] is None
    del read
    gc.collect()
    assert not spooled.exists()
