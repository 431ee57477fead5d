"""RGB frames -> one .mp4 file. H.264 where this build of PyAV can encode it, else MPEG-4 part 2, which every build can.

The same frames give the same bytes, so that a corpus drawn twice has the same media. The index (`moov`) stays at the
end of the file, PyAV's default: a file cut short is then unreadable, as in the wild.
"""

from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path

import av
import numpy as np

# One thread and no macroblock tree: with it x264 reads memory it never wrote, and the same frames give other bytes.
_OPTIONS = {
    "libx264": {"crf": "16", "threads": "1", "mbtree": "0"},
    "mpeg4": {"qscale": "3", "threads": "1"},
}


def write_video(path: Path, frames: Sequence[np.ndarray], fps: float) -> None:
    """Write `frames`, each uint8 (H, W, 3) RGB of one even size, at a constant rate.

    Raises ValueError without frames or with an odd side.
    """
    if not frames or frames[0].shape[0] % 2 or frames[0].shape[1] % 2:
        raise ValueError(f"{path}: a video needs at least one frame with even sides; crop or pad the frames")
    height_px, width_px = frames[0].shape[:2]
    codec = "libx264" if "libx264" in av.codecs_available else "mpeg4"
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=Fraction(fps).limit_denominator(1001))
        assert isinstance(stream, av.VideoStream)
        stream.width, stream.height, stream.pix_fmt = width_px, height_px, "yuv420p"
        stream.options = dict(_OPTIONS[codec])
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode())
