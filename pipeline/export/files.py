"""`tokenmill export images|clips`: kept media as files, for whoever wants files, with their captions beside them.

Images are copied byte for byte. Clips are encoded anew, frame by frame in the order and at the times of presentation,
upright and without sound: a copied stream would start at a key frame, not at the cut. The folder is itself a source of
ours: `captions.jsonl` names file, caption, id, and where the medium came from. A second export writes what is missing.
"""

import io
import json
from collections import Counter, defaultdict
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from fractions import Fraction
from itertools import pairwise
from typing import Any

import av
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from rich.console import Console

from tokenmill import storage
from tokenmill.pipeline.catalog.export_registry import remember_export
from tokenmill.pipeline.catalog.tables import Catalog, CatalogError
from tokenmill.pipeline.config import RunConfig
from tokenmill.pipeline.refresh.sources import CAPTIONS_NAME
from tokenmill.pipeline.reports.terminal import Meter, PhaseReport
from tokenmill.stages.read.media_bytes import Places
from tokenmill.stages.select.duplicates import duplicate_ids
from tokenmill.stages.table.columns import PLACES
from tokenmill.stages.table.rows import RowError, words
from tokenmill.stages.video.decode import BrokenVideoError, Video
from tokenmill.storage.identity import content_id

_READERS = 8
_CLOCK = Fraction(1, 90_000)
_MAX_PIXELS = 400_000_000
_EXTENSIONS = {"jpeg": "jpg", "tiff": "tif", "jpeg2000": "jp2"}


def export_media(config: RunConfig, kind: str, out: str, prune: bool, console: Console) -> None:
    """Write the kept media of `kind`, image or video, that are no duplicates, under `out` (a folder or s3://).

    Files of media that are kept no more are named, and deleted with `prune`. Raises CatalogError without a catalog.
    """
    catalog = Catalog(config.root, config.version)
    if not catalog.exists():
        raise CatalogError(f"{catalog.root}: no catalog there yet; run `tokenmill curate CONFIG` first")
    where = pc.field("reject_reason").is_null() & (pc.field("kind") == kind)
    media = catalog.media.scan([*PLACES.names, "format", "fps"], where)
    media = media.filter(pc.invert(pc.is_in(media["media_id"], value_set=duplicate_ids(catalog)))).sort_by("media_id")
    captions = catalog.captions.scan(["media_id", "caption"])
    at = pc.index_in(media["media_id"], value_set=captions["media_id"].combine_chunks())
    rows = media.append_column("caption", captions["caption"].take(at)).to_pylist()
    for row in rows:
        row["file"] = f"{row['media_id']}.{_extension(kind, row['format'])}"

    out = storage.absolute(out)
    remember_export(catalog.root, kind, out)
    there = set(storage.list_names(out)) if storage.exists(out) else set()
    todo = [row for row in rows if row["file"] not in there]
    report = PhaseReport("export")
    with Meter(console, report, len(todo), "images" if kind == "image" else "clips") as meter:
        failed = _export(todo, kind, out, config.fetched, lambda: meter.arrived(1))
    lost = {row["media_id"] for row, _ in failed}
    lines = [_line(row) for row in rows if row["media_id"] not in lost]
    storage.write_bytes(storage.join(out, CAPTIONS_NAME), "".join(lines).encode())
    gone = sorted(there - {row["file"] for row in rows} - {CAPTIONS_NAME})
    if prune:
        for name in gone:
            storage.delete_file(storage.join(out, name))
    console.print(
        f"{len(todo) - len(failed)} written, {len(rows) - len(todo)} there already, {len(failed)} failed, "
        f"{len(gone)} of media kept no more{' deleted' if prune else ' (--prune deletes them)' if gone else ''}: {out}",
        highlight=False,
    )
    for reason, count in Counter(reason for _, reason in failed).most_common():
        console.print(f"  {count} x {reason}", style="yellow", highlight=False, markup=False)


def _extension(kind: str, name: str) -> str:
    return "mp4" if kind == "video" else _EXTENSIONS.get(name, name)


def _line(row: dict[str, Any]) -> str:
    names = ("file", "caption", "media_id", "uri", "member", "start_s", "end_s")
    return json.dumps({name: row[name] for name in names if row[name] is not None}) + "\n"


def _export(
    rows: list[dict[str, Any]], kind: str, out: str, fetched: str, on_one: Callable[[], None]
) -> list[tuple[dict[str, Any], str]]:
    """Write the files; returns the rows that failed, with the reason."""
    by_file: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for row in rows:
        by_file[row["file_id"]].append(row)

    def one(mine: list[dict[str, Any]]) -> list[tuple[dict[str, Any], str]]:
        try:
            places = Places(fetched)
            return _copy(mine, out, places) if kind == "image" else _cut(mine, out, places)
        except RowError as rejected:
            return [(row, rejected.columns["reject_reason"]) for row in mine]
        except (OSError, pa.ArrowException) as error:
            return [(row, words(error)) for row in mine]

    failed = []
    with ThreadPoolExecutor(_READERS if kind == "image" else 1) as readers:
        for mine, found in zip(by_file.values(), readers.map(one, by_file.values()), strict=True):
            failed += found
            for _ in mine:
                on_one()
    return failed


def _copy(rows: list[dict[str, Any]], out: str, places: Places) -> list[tuple[dict[str, Any], str]]:
    content = places.read(rows[0])
    if content_id([content]) != rows[0]["file_id"]:
        return [(row, "changed: refresh the sources") for row in rows]
    for row in rows:
        storage.write_bytes(storage.join(out, row["file"]), content)
    return []


def _cut(rows: list[dict[str, Any]], out: str, places: Places) -> list[tuple[dict[str, Any], str]]:
    """All clips of one file in one decode."""
    rows = sorted(rows, key=lambda row: row["start_s"])
    with places.local_file(rows[0]) as path:
        if content_id(storage.read_chunks(path)) != rows[0]["file_id"]:
            return [(row, "changed: refresh the sources") for row in rows]
        waiting, open_ = list(rows), None
        with Video(path, _MAX_PIXELS) as video:
            try:
                for time_s, frame in video.frames():
                    if open_ is not None and time_s >= open_.end_s - 1e-6:
                        storage.write_bytes(storage.join(out, open_.row["file"]), open_.close())
                        open_ = None
                    if open_ is None and waiting and time_s >= waiting[0]["start_s"] - 1e-6:
                        open_ = _Writer(waiting.pop(0))
                    if open_ is not None:
                        open_.add(time_s, video.upright(frame))
            except BrokenVideoError:
                pass  # curate kept what stands before the damage
        if open_ is not None:
            storage.write_bytes(storage.join(out, open_.row["file"]), open_.close())
    return [(row, "no frame at its time") for row in waiting]


class _Writer:
    """One clip being encoded: H.264 where this build of PyAV can, else MPEG-4 part 2."""

    def __init__(self, row: dict[str, Any]):
        self.row, self.end_s = row, row["end_s"]
        self._times: list[float] = []
        self._file = io.BytesIO()
        self._container = av.open(self._file, "w", format="mp4")
        self._stream: Any = None

    def add(self, time_s: float, rgb: np.ndarray) -> None:
        """One more frame, uint8 (H, W, 3); an odd last row or column is left out, as the codecs ask."""
        height, width = (side // 2 * 2 for side in rgb.shape[:2])
        if self._stream is None:
            codec = "libx264" if "libx264" in av.codecs_available else "mpeg4"
            rate = Fraction(self.row["fps"] or 25).limit_denominator(1001)
            self._stream = self._container.add_stream(codec, rate=rate)
            self._stream.width, self._stream.height, self._stream.pix_fmt = width, height, "yuv420p"
            self._stream.options = {"crf": "14"} if codec == "libx264" else {"qscale": "2"}
            self._stream.codec_context.time_base = _CLOCK
        frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(rgb[:height, :width]), format="rgb24")
        frame.pts, frame.time_base = round((time_s - self.row["start_s"]) / _CLOCK), _CLOCK
        self._times.append(time_s)
        self._container.mux(self._stream.encode(frame))

    def close(self) -> bytes:
        """The file."""
        assert all(a < b for a, b in pairwise(self._times))
        self._container.mux(self._stream.encode(None))
        self._container.close()
        return self._file.getvalue()
