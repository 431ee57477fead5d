"""A picture comes out, and says so when there is nothing to draw."""

import json

import pytest
from PIL import Image

from tokenmill.training.tracking.curves import draw_curves


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


def test_validation_and_spikes_are_in_the_picture(tmp_path):
    lines = [{"step": n, "image": 5 - n / 10, "tokens": 1} for n in range(1, 30)]
    more = [{"step": n, "val": {"image": 5 - n / 20, "loss": 4.0}} for n in (10, 20)]
    marked = lines[:-1] + [lines[-1] | {"spikes": [{"step": 28, "loss": 9.0}, {"step": 29, "loss": None}]}]
    colours = []
    for name, log in (("plain", lines), ("seen", [*marked, *more])):
        (tmp_path / name).mkdir()
        (tmp_path / name / "log.jsonl").write_text("".join(json.dumps(line) + "\n" for line in log))
        draw_curves(str(tmp_path / name), str(tmp_path / name / "loss.png"))
        with Image.open(tmp_path / name / "loss.png") as picture:
            pixels = {colour: count for count, colour in picture.convert("RGB").getcolors(1 << 20)}
            colours.append((pixels.get((255, 127, 14), 0), pixels.get((77, 77, 77), 0)))  # of images, of marks
    assert colours[1][0] > colours[0][0] + 50 and colours[1][1] > colours[0][1] + 20


def test_no_log(tmp_path):
    with pytest.raises(ValueError, match="train first"):
        draw_curves(str(tmp_path), str(tmp_path / "loss.png"))
