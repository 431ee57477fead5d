"""Containers: every member is told apart, no name is a path, damage costs what stands behind it and is said."""

import csv
import io
import json
import tarfile
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from tokenmill import storage
from tokenmill.stages.read.containers import members, names
from tokenmill.stages.read.media_bytes import Places
from tokenmill.stages.read.read import Read, ReadConfig
from tokenmill.stages.table.columns import LISTED, PLACES, UNPACK
from tokenmill.stages.table.rows import RowError
from tokenmill.stages.tokenize.frames import LoadFramesConfig
from tokenmill.stages.tokenize.load_frames import LoadFrames
from tokenmill.stages.video.split import SplitVideos, SplitVideosConfig


def picture(shade: int) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (64, 64), (shade, 100, 50)).save(file, "PNG")
    return file.getvalue()


def tar_of(path: Path, files: dict[str, bytes]) -> Path:
    with tarfile.open(path, "w") as tar:
        for name, content in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return path


def test_samples_of_a_tar(tmp_path):
    said = {"caption": "from json", "url": "http://x", "width": 64}
    files = {
        "a/0.png": picture(1), "a/0.txt": b"a cat\n", "a/0.json": json.dumps(said).encode(),
        "a/1.png": picture(2), "a/1.json": json.dumps(said).encode(), "a/1.cls": b"3",
        "a/2.txt": b"alone",
        "../../b.left.png": picture(3), "b.right.png": picture(4),
        "c.png": b"no picture",
    }  # fmt: skip
    path = tar_of(tmp_path / "x.tar", files)
    found = list(members(str(path), "webdataset"))
    by_name = {member.name: member for member in found}
    assert list(by_name) == ["a/0.png", "a/1.png", "a/2.txt", "../../b.left.png", "b.right.png", "c.png"]
    assert by_name["a/0.png"].caption == "a cat" and by_name["a/1.png"].caption == "from json"
    assert json.loads(by_name["a/0.png"].metadata) == said
    assert by_name["a/2.txt"].error.columns["reject_reason"] == "no_medium"
    places = Places("")
    for name in ("a/0.png", "a/1.png", "../../b.left.png"):
        member = by_name[name]
        place = {"uri": str(path), "member": name, "offset_bytes": member.offset, "size_bytes": member.size}
        assert member.content == files[name] == places.read(place)


def test_links_and_long_names(tmp_path):
    long = "d" * 90 + "/" + "e" * 150 + ".png"
    path = tar_of(tmp_path / "x.tar", {long: picture(1)})
    with tarfile.open(path, "a") as tar:
        link = tarfile.TarInfo("passwd.png")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        tar.addfile(link)
    found = list(members(str(path), "webdataset"))
    assert [member.name for member in found] == [long, "passwd.png"]
    assert found[0].content == picture(1)
    assert found[1].content is None and found[1].error.columns["reject_reason"] == "not_a_file"


@pytest.mark.parametrize("damage", ["cut in a member", "cut at a header", "overwritten header", "zeros inside"])
def test_a_damaged_tar_gives_what_stands_before(tmp_path, damage):
    path = tar_of(tmp_path / "x.tar", {f"{i}.png": picture(i) for i in range(4)})
    data = bytearray(path.read_bytes())
    with tarfile.open(path) as tar:
        third = tar.getmembers()[2]
    if damage == "cut in a member":
        data = data[: third.offset_data + 10]
    elif damage == "cut at a header":
        data = data[: third.offset + 100]
    elif damage == "overwritten header":
        data[third.offset : third.offset + 512] = b"x" * 512
    else:
        data[third.offset : third.offset + 512] = bytes(512)
    path.write_bytes(data)
    found = []
    error = None
    try:
        for member in members(str(path), "webdataset"):
            found.append(member.name)
    except RowError as rejected:
        error = rejected.columns["reject_reason"]
    assert found == ["0.png", "1.png"]
    assert error == "corrupt_container"
    assert names(str(path), "webdataset", None, None) == found


def test_a_compressed_tar_says_what_to_do(tmp_path):
    with tarfile.open(tmp_path / "x.tar.gz", "w:gz"):
        pass
    with pytest.raises(RowError, match="unsupported_format.*decompress"):
        list(members(str(tmp_path / "x.tar.gz"), "webdataset"))


def test_a_table_of_bytes(tmp_path):
    rows = [{"image": {"bytes": picture(i), "path": f"{i}.png"}, "text": f"number {i}", "width": i} for i in range(100)]
    rows[0]["image"] = rows[7]["image"] = None
    path = tmp_path / "x.parquet"
    pq.write_table(pa.Table.from_pylist(rows), path, row_group_size=30)
    found = list(members(str(path), "parquet"))
    assert len(found) == 100
    for i in (0, 7):
        assert found[i].error.columns["reject_reason"] == "empty_file"
    assert (found[8].name, found[8].caption, json.loads(found[8].metadata)) == (
        "image:000000008",
        "number 8",
        {"width": 8},
    )
    places = Places("")
    for i in (99, 3, 50, 51):
        assert places.read({"uri": str(path), "member": found[i].name, "offset_bytes": None}) == picture(i)
    with pytest.raises(RowError, match="no column 'images'"):
        list(members(str(path), "parquet", "images"))


@pytest.mark.parametrize("extension", ["csv", "tsv", "jsonl", "parquet", "txt"])
def test_lists_of_urls(tmp_path, extension):
    urls = ["https://a.example/x.jpg", "https://a.example/y.jpg", "https://a.example/x.jpg"]
    rows = [{"URL": url, "TEXT": f"caption, {i}", "n": i} for i, url in enumerate(urls)]
    path = tmp_path / f"list.{extension}"
    if extension == "parquet":
        pq.write_table(pa.Table.from_pylist(rows), path)
    elif extension == "jsonl":
        path.write_text("".join(json.dumps(row) + "\n\n" for row in rows) + "not json\n")
    elif extension == "txt":
        path.write_text("# comment\n\n" + "\n".join(urls))
    else:
        with path.open("w", newline="") as file:
            table = csv.DictWriter(file, ["URL", "TEXT", "n"], delimiter="," if extension == "csv" else "\t")
            table.writeheader()
            table.writerows(rows)
    found = list(members(str(path), "urls"))
    assert [member.url for member in found if member.url] == urls[:2], "a URL twice is one member"
    if extension != "txt":
        assert found[1].caption == "caption, 1" and str(json.loads(found[1].metadata)["n"]) == "1"
    assert [member.error.columns["reject_reason"] for member in found if member.error] == (
        ["malformed_line"] if extension == "jsonl" else []
    )


def test_texts(tmp_path):
    path = tmp_path / "x.jsonl"
    path.write_text('{"text": "one\\ntwo", "id": 1}\n{"text": " "}\n')
    one, blank = members(str(path), "text")
    assert (one.text, one.caption, json.loads(one.metadata)) == ("one\ntwo", None, {"id": 1})
    assert blank.error.columns["reject_reason"] == "empty_file"


def test_a_tar_in_a_store_is_read_by_spans(tmp_path, s3):
    pictures = {f"{i}.png": picture(i) for i in range(3)}
    uri = f"{s3}/x.tar"
    storage.write_bytes(uri, tar_of(tmp_path / "x.tar", pictures).read_bytes())
    for member in members(uri, "webdataset"):
        place = {"uri": uri, "member": member.name, "offset_bytes": member.offset, "size_bytes": member.size}
        assert member.content == pictures[member.name] == Places("").read(place)


def test_clips_of_a_video_in_a_tar(tmp_path, texture, write_video):
    video = write_video("a.mp4", [texture(64, 48, seed) for seed in range(16)])
    path = tar_of(tmp_path / "x.tar", {"a.mp4": video.read_bytes(), "a.txt": b"noise"})
    listed = pa.Table.from_pylist([{"uri": str(path), "container": "webdataset"}], pa.schema([*LISTED, *UNPACK]))
    read = Read(ReadConfig())  # its folder holds the copy
    clips = SplitVideos(SplitVideosConfig())(read(listed))
    assert clips["kind"].to_pylist() == ["video"] and clips["source_caption"].to_pylist() == ["noise"]
    todo = clips.select(PLACES.names).append_column("caption", clips["source_caption"])
    row = LoadFrames(LoadFramesConfig(area_px=64 * 48, clip_fps=25.0))(todo).to_pylist()[0]
    assert (row["frames_t"], row["frames_h"], row["frames_w"], row["reject_reason"]) == (16, 48, 64, None)
    changed = todo.set_column(todo.schema.get_field_index("offset_bytes"), "offset_bytes", pa.array([0]))
    assert LoadFrames(LoadFramesConfig(area_px=64 * 48))(changed)["reject_reason"].to_pylist() != [None]


def test_texts_and_names_in_containers_are_cleaned(tmp_path):
    lines = [{"text": "a \ud800 document\x00"}, {"text": "fine", "by": "\u202eeve"}]
    (tmp_path / "x.jsonl").write_text("\n".join(json.dumps(line) for line in lines))
    found = list(members(str(tmp_path / "x.jsonl"), "text"))
    assert [member.text for member in found] == ["a \ufffd document", "fine"]
    assert json.loads(found[1].metadata) == {"by": "eve"}
    tar = tar_of(tmp_path / "x.tar", {"a\udcff.png": picture(1), "a\udcff.txt": b"said\x07 so\xff"})
    (member,) = members(str(tar), "webdataset")
    assert (member.name, member.caption, member.content) == (r"a\udcff.png", "said so\ufffd", picture(1))
