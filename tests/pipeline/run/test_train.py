"""What a person is told of a training before, while and after it runs."""

import pytest
import yaml
from typer.testing import CliRunner

from tokenmill.pipeline.commands import cli, phases
from tokenmill.pipeline.run.train import _held_out, _result, said
from tokenmill.training.job import TrainResult, told_of


def test_a_line_shows_validation_and_waits_that_matter():
    losses, speeds = {"loss": 2.5, "structure": 0.1, "val": 2.75}, {"tokens_per_s": 1234.0}
    assert said(losses, speeds | {"data_wait": 0.02}) == "loss 2.500  val 2.750  1,234 tokens/s"
    assert said(losses, speeds | {"data_wait": 0.4}) == "loss 2.500  val 2.750  1,234 tokens/s  waits for data 40%"


def test_what_is_held_out_is_counted_by_sort():
    words = _held_out({"image": 12, "video": 3, "dialogue": 2, "text": 1}, 400)
    assert words == "held out for validation: 12 images, 3 clips, 2 dialogues, 1 texts; trained on: 400 documents"
    assert _held_out({}, 400) == ""


def test_the_end_tells_the_losses_of_what_was_held_out():
    result = TrainResult("r", "m", "p", 3, 8, 40, 999, {}, 0.9, {"loss": 2.0}, 1.0, 0)
    assert len(list(_result(result, False, 64))) == 1
    result = TrainResult("r", "m", "p", 3, 8, 40, 999, {}, 0.9, {"loss": 2.0}, 1.0, 0,
                         held_out={"image": 4}, validation={"loss": 2.25, "image": 2.5})  # fmt: skip
    assert list(_result(result, False, 64))[1] == "held out, 4 images: loss 2.250, image 2.500"


@pytest.mark.parametrize(
    ("spike", "words"),
    [
        ({"loss": 9.0, "usual": 3.25}, "its loss is 9.000, usually below 3.250; spikes/ names its documents"),
        ({"loss": None, "usual": None}, "its loss is no number; spikes/ names its documents"),
    ],
)
def test_a_step_that_stood_out_is_told(spike, words):
    assert told_of({"step": 7, "did": "skipped"} | spike) == f"step 7 skipped: {words}"


def test_train_watch_starts_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr(phases, "_run", lambda *_: pytest.fail("a training was started"))
    path = tmp_path / "mine.yaml"
    path.write_text(yaml.safe_dump({"root": str(tmp_path / "root"), "sources": [{"uri": "photos"}]}))
    result = CliRunner().invoke(cli.app, ["train", str(path), "--watch"])
    assert result.exit_code == 0 and not (tmp_path / "root").exists()
