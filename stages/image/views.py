"""What the decode hands to scorers that run a model: small square pictures, as CLIP's own preprocessing makes them.

The shorter side is resized to `size_px` with antialiased bicubic interpolation and the middle is cut out, as OpenCLIP
and transformers do with PIL, so that the model sees what it would see without us. A row holds one view of an image, or
several of a clip in the order of time, as raw bytes: a tensor of 150 KB crosses processes, a decoded photo does not.
"""

import numpy as np
import pyarrow as pa
from PIL import Image


def make_view(rgb: np.ndarray, size_px: int) -> bytes:
    """uint8 (size_px, size_px, 3) RGB of a uint8 (H, W, 3) RGB picture, as bytes."""
    image = Image.fromarray(rgb)
    scale = size_px / min(image.size)
    width, height = (max(size_px, int(side * scale)) for side in image.size)
    image = image.resize((width, height), Image.Resampling.BICUBIC)
    left, top = round((width - size_px) / 2), round((height - size_px) / 2)
    return image.crop((left, top, left + size_px, top + size_px)).tobytes()


def stack_views(views: pa.Array | pa.ChunkedArray, size_px: int) -> tuple[np.ndarray, np.ndarray]:
    """All views of a column of bytes: uint8 (N, size_px, size_px, 3), and for each the row that it belongs to, (N,).

    A null row has none.
    """
    rows: list[int] = []
    parts: list[np.ndarray] = []
    for row, content in enumerate(views):
        if content.is_valid:
            stack = np.frombuffer(content.as_buffer(), np.uint8).reshape(-1, size_px, size_px, 3)
            parts.append(stack)
            rows += [row] * len(stack)
    empty = np.empty((0, size_px, size_px, 3), np.uint8)
    return np.concatenate(parts) if parts else empty, np.array(rows, np.int64)
