"""A picture comes out, and says so when there is nothing to draw."""

import json

import pytest
from PIL import Image

from tokenmill.training.run.curves import draw_curves


def test_picture_of_a_log(tmp_path):
    lines = [
        {"step": n, "image": 5 - n / 10, "text": 3.0, "document": 4.0} | ({"video": 6.0} if n % 2 else {})
        for n in range(1, 30)
    ]
    (tmp_path / "log.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    draw_curves(str(tmp_path), str(tmp_path / "loss.png"))
    with Image.open(tmp_path / "loss.png") as picture:
        assert picture.size == (840, 480)
        assert len(picture.convert("RGB").getcolors(1 << 20)) > 20


def test_no_log(tmp_path):
    with pytest.raises(ValueError, match="train first"):
        draw_curves(str(tmp_path), str(tmp_path / "loss.png"))
