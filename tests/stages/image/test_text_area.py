"""Text is found where there is some, and looked for only where a verdict hangs on it."""

import io

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image, ImageDraw, ImageFont

from tokenmill.pipeline.reports.video_file import write_video
from tokenmill.stages.image.score import ScoreImages, ScoreImagesConfig
from tokenmill.stages.image.text_area import TextConfig, TextDetector, TextFound, _is_line
from tokenmill.stages.read.read import Read, ReadConfig
from tokenmill.stages.select.expensive import Lazy
from tokenmill.stages.table.columns import LISTED, MEDIA
from tokenmill.stages.table.rows import without
from tokenmill.stages.video.split import SplitVideos, SplitVideosConfig

RULES = {"large": "width_px >= 300", "little_text": "text_area <= 0.05"}


def page(num_lines: int, size: tuple[int, int] = (480, 320)) -> np.ndarray:
    image = Image.new("RGB", size, "white")
    font = ImageFont.load_default(22)
    for line in range(num_lines):
        ImageDraw.Draw(image).text((20, 12 + 30 * line), "The quick brown fox jumps over", "black", font)
    return np.asarray(image)


def scored(pictures: list[np.ndarray], lazy: Lazy, views_px: int | None = None) -> list[dict]:
    contents = []
    for picture in pictures:
        out = io.BytesIO()
        Image.fromarray(picture).save(out, "PNG")
        contents.append(out.getvalue())
    schema = without(MEDIA, "fingerprint", "run_id").append(pa.field("content", pa.large_binary()))
    rows = [{"kind": "image", "content": content} for content in contents]
    stage = ScoreImages(ScoreImagesConfig(), lazy, TextConfig(), views_px)
    return stage(pa.Table.from_pylist(rows, schema=schema)).to_pylist()


@pytest.fixture(scope="module")
def detector() -> TextDetector:
    return TextDetector()


def test_more_lines_are_more_text(detector):
    few, many = detector(page(2), 512), detector(page(9), 512)
    assert 0.02 < few.area < many.area < 0.9
    assert few.boxes == 2 and many.boxes >= 8


def test_pictures_without_text_have_none(detector):
    ramp = np.linspace(0, 255, 400, dtype=np.uint8)
    picture = np.stack([np.tile(ramp, (300, 1))] * 3, axis=-1)
    assert detector(picture, 256) == (0.0, 0)
    assert detector(np.zeros((4, 900, 3), np.uint8), 256) == (0.0, 0)


def test_a_box_as_thick_as_the_picture_is_no_line():
    assert _is_line(np.array([[0, 0], [200, 0], [200, 30], [0, 30]]), 200)
    assert not _is_line(np.array([[0, 0], [200, 0], [200, 190], [0, 190]]), 200)


def test_text_is_looked_for_only_where_the_verdict_hangs_on_it(monkeypatch):
    asked = []
    monkeypatch.setattr(TextDetector, "__call__", lambda self, rgb, px: asked.append(rgb.shape) or TextFound(0.5, 3))
    small, large = page(1, (200, 200)), page(1)
    rows = scored([small, large], Lazy(RULES, {}, ("text:1",)))
    assert asked == [(320, 480, 3)]
    assert [row["text_area"] for row in rows] == [None, 0.5]
    assert [row["scored"] for row in rows] == [None, "text:1"]
    scored([small, large], Lazy(RULES, {}, ("text:1",), all_scores=True))
    assert len(asked) == 3
    scored([small, large], Lazy(RULES, {}))
    assert len(asked) == 3, "text is looked for although it is switched off"


def test_views_are_made_only_for_media_that_the_model_has_to_see():
    rules = {"large": "width_px >= 300", "pleasing": "aesthetic >= 5"}
    rows = scored([page(1, (200, 200)), page(1)], Lazy(rules, {}, ("clip:1",)), views_px=32)
    assert [row["views"] and len(row["views"]) for row in rows] == [None, 32 * 32 * 3]


def test_clips_are_looked_at_only_where_the_verdict_hangs_on_text(tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr(TextDetector, "__call__", lambda self, rgb, px: asked.append(px) or TextFound(0.25, len(asked)))
    path = tmp_path / "page.mp4"
    write_video(path, [page(1 + index // 12) for index in range(36)], 12)
    rules = {"long": "duration_s >= {}", "little_text": "text_area <= 0.5"}
    for min_s, num_asked in ((5, 0), (1, 6)):
        lazy = Lazy({}, {**rules, "long": rules["long"].format(min_s)}, ("text:1",))
        read = Read(ReadConfig())(pa.table({"uri": [str(path)], "size_bytes": [0], "source_caption": [None]}, LISTED))
        through = ScoreImages(ScoreImagesConfig(), lazy, TextConfig())(read)
        (clip,) = SplitVideos(SplitVideosConfig(), lazy, TextConfig())(through).to_pylist()
        assert len(asked) == num_asked, "at 2 FPS, three seconds have six samples"
        assert (clip["text_area"], clip["text_boxes"]) == ((0.25, 6) if num_asked else (None, None))
        assert clip["scored"] == ("text:1" if num_asked else None)
