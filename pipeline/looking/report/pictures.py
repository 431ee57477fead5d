"""Pictures inside the page: each is drawn once, and none is there that the page has no room for."""

import base64
from collections.abc import Mapping
from typing import Any

from tokenmill.pipeline.looking.previews import Previews

_STILL_PX, _CLIP_PX, _CLIP_FRAMES = 120, 144, 8


class Pictures:
    """Data URIs of media, until `budget_bytes` are spent; `num_left_out` then counts."""

    def __init__(self, fetched: str, budget_bytes: int):
        self._previews, self._left = Previews(fetched), budget_bytes
        self._known: dict[tuple[str, bool], bytes | None] = {}
        self.num_left_out = 0

    def still(self, row: Mapping[str, Any]) -> str | None:
        """Of a row of `media`; null where it cannot be drawn, or there is no more room."""
        return self._uri(row, False)

    def moving(self, row: Mapping[str, Any]) -> str | None:
        """The same of a clip, playing."""
        return self._uri(row, True)

    def file(self, content: bytes, media_type: str) -> str | None:
        """Of a picture that is made already."""
        size = len(content) * 4 // 3
        if size > self._left:
            self.num_left_out += 1
            return None
        self._left -= size
        return f"data:{media_type};base64,{base64.b64encode(content).decode()}"

    def _uri(self, row: Mapping[str, Any], is_moving: bool) -> str | None:
        key = (row["media_id"], is_moving)
        if key not in self._known and self._left > 0:
            previews = self._previews
            self._known[key] = (
                previews.moving(row, _CLIP_PX, _CLIP_FRAMES) if is_moving else previews.still(row, _STILL_PX)
            )
        content = self._known.get(key)
        return None if content is None else self.file(content, "image/webp")
