"""Small media made on the spot, and the contract that every stage keeps."""

from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pyarrow as pa
import pytest

from tokenmill.stages.table.columns import LISTED


@pytest.fixture
def listed() -> Callable[..., pa.Table]:
    """A LISTED table of paths."""

    def make(*paths: Path | str, caption: str | None = None) -> pa.Table:
        rows = [{"uri": str(path), "size_bytes": None, "source_caption": caption} for path in paths]
        return pa.Table.from_pylist(rows, schema=LISTED)

    return make


@pytest.fixture
def texture() -> Callable[..., np.ndarray]:
    """uint8 (H, W, 3): smooth coloured noise, so that motion and sharpness are measurable and codecs do not choke."""

    def make(width: int, height: int, seed: int = 0) -> np.ndarray:
        coarse = np.random.default_rng(seed).integers(0, 256, (height // 8 + 2, width // 8 + 2, 3)).astype(np.float64)
        rows, columns = np.arange(height) / 8, np.arange(width) / 8
        top, left = rows.astype(int), columns.astype(int)
        down, right = (rows - top)[:, None, None], (columns - left)[None, :, None]
        upper = coarse[top][:, left] * (1 - right) + coarse[top][:, left + 1] * right
        lower = coarse[top + 1][:, left] * (1 - right) + coarse[top + 1][:, left + 1] * right
        return (upper * (1 - down) + lower * down).astype(np.uint8)

    return make


@pytest.fixture
def write_video(tmp_path: Path) -> Callable[..., Path]:
    """Encode uint8 (H, W, 3) frames. `ticks` are presentation times in ms, else 25 frames per second; `options` the
    container's."""

    def write(
        name: str, frames: list[np.ndarray], ticks: list[int] | None = None, codec: str = "libx264", **options: str
    ) -> Path:
        path = tmp_path / name
        with av.open(str(path), "w", options=options) as container:
            stream = container.add_stream(codec, rate=25, options={"g": "12"})
            assert isinstance(stream, av.VideoStream)
            stream.width, stream.height, stream.pix_fmt = frames[0].shape[1], frames[0].shape[0], "yuv420p"
            stream.codec_context.time_base = Fraction(1, 1000) if ticks else Fraction(1, 25)
            for i, pixels in enumerate(frames):
                frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(pixels), format="rgb24")
                frame.pts, frame.time_base = (ticks[i] if ticks else i), stream.codec_context.time_base
                container.mux(stream.encode(frame))
            container.mux(stream.encode())
        return path

    return write


@pytest.fixture
def check_stage() -> Callable[[Any, pa.Table], pa.Table]:
    """Run a stage on a table and check what holds for every stage; returns its output."""

    def check(stage: Any, table: pa.Table) -> pa.Table:
        output = stage(table)
        kept = [name for name in table.column_names if name not in stage.drops]
        assert set(output.column_names) == {*kept, *stage.writes.names}
        for field in stage.writes:
            assert output.schema.field(field.name).type == field.type, field.name
        for field in stage.reads:
            assert table.schema.field(field.name).type == field.type, field.name
        if stage.rows == "same":
            assert output.num_rows == table.num_rows
        assert stage(table.slice(0, 0)).schema.equals(output.schema)
        singly = pa.concat_tables([stage(table.slice(i, 1)) for i in range(table.num_rows)])
        assert singly.to_pylist() == output.to_pylist()
        return output

    return check
