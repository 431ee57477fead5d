"""`tokenmill eval model` from its command line: two models on the same media, twice the same figures; what it says."""

import json

import numpy as np
import pytest
import tiny_clip
from PIL import Image
from typer.testing import CliRunner

from tokenmill.pipeline.commands.cli import app
from tokenmill.pipeline.config import ConfigError


@pytest.fixture(scope="module")
def media(tmp_path_factory):
    """Six pictures with captions, one of them in a .txt; one without; one broken; questions; a small CLIP."""
    folder = tmp_path_factory.mktemp("eval")
    pictures = folder / "pictures"
    pictures.mkdir()
    rng = np.random.default_rng(0)
    lines = []
    for number in range(7):
        Image.fromarray(rng.integers(0, 256, (64, 64, 3), np.uint8)).save(pictures / f"{number}.png")
        if number < 5:
            lines.append(json.dumps({"file": f"{number}.png", "caption": "a red cat left of a dog"}))
    (pictures / "captions.jsonl").write_text("\n".join(lines))
    (pictures / "5.txt").write_text("a red dog")
    (pictures / "broken.png").write_bytes((pictures / "0.png").read_bytes()[:80])
    asked = [{"from": "human", "value": "what is it?"}, {"from": "gpt", "value": "a house"}]
    questions = [{"image": "pictures/0.png", "conversations": asked}, {"conversations": asked}]
    (folder / "questions.jsonl").write_text("\n".join(map(json.dumps, questions)))
    tiny_clip.save(folder / "clip")
    return folder


def call(config, *arguments):
    result = CliRunner().invoke(app, ["eval", "model", str(config), *map(str, arguments)])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result.output


def both(config, media, out):
    options = ["--pictures", media / "pictures", "--questions", media / "questions.jsonl", "--out", out]
    options += ["--stage", "stage1", "--stage", "stage2", "--features", media / "clip"]
    return call(config, *options, "--set", f"curate.clip.model={media / 'clip'}")


def test_two_models_side_by_side_and_the_same_each_time(trained_config, media, tmp_path):
    output = both(trained_config, media, tmp_path / "one")
    found = json.loads((tmp_path / "one" / "eval.json").read_text())
    assert list(found["models"]) == ["stage1", "stage2"] and found["models"]["stage1"]["tokens_version"] == 1
    measures = found["measures"]
    assert {*measures} == {
        *("loss image", "loss image alone", "loss caption", "CLIP likeness", "FID", "KID", "KID deviation"),
        *("BLEU-4", "CIDEr-D", "exact match"),
    }
    for each in measures.values():
        assert each["of"] and all(np.isfinite(value) for value in each["values"].values())
    assert measures["loss image"]["of"] == "384 tokens of 6" and measures["KID"]["of"].endswith("subsets of 3")
    drawn = sorted((each["prompt"], each["seed"]) for each in found["drawn"])
    assert drawn == [("a red cat left of a dog", seed) for seed in range(5)] + [("a red dog", 0)]
    assert len(found["captions"]) == 7 and {*found["answers"][1]["said"]} == {"stage1", "stage2"}
    assert found["answers"][1]["name"] is None and found["answers"][0]["name"] == "0.png"
    with Image.open(tmp_path / "one" / "eval.png") as page:
        assert page.height > 600
    assert "unreadable 1" in output and "FID of fewer" in output and "not known what" in output
    both(trained_config, media, tmp_path / "two")
    assert json.loads((tmp_path / "two" / "eval.json").read_text()) == found


def test_prompts_alone_and_nothing_at_all(trained_config, tmp_path):
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("a cat\na dog\n")
    output = call(trained_config, "--prompts", prompts, "--n", 1, "--out", tmp_path / "out")
    found = json.loads((tmp_path / "out" / "eval.json").read_text())
    assert found["measures"] == {} and [each["prompt"] for each in found["drawn"]] == ["a cat"]
    assert "curate.clip.model" in output and (tmp_path / "out" / "eval.png").exists()
    with pytest.raises(ConfigError, match="nothing to measure on; .*give --pictures"):
        call(trained_config, "--out", tmp_path / "none")
    with pytest.raises(ConfigError, match="no such stage in train.stages; there are stage1, stage2"):
        call(trained_config, "--stage", "stage3", "--prompts", prompts, "--out", tmp_path / "none")
    questions = tmp_path / "questions.jsonl"
    turns = [{"from": "human", "value": "what?"}, {"from": "gpt", "value": "it"}]
    questions.write_text(json.dumps({"image": "gone.png", "conversations": turns}))
    with pytest.raises(ConfigError, match="1 of 1 media are neither files beside it nor kept in the catalog: gone.png"):
        call(trained_config, "--questions", questions, "--out", tmp_path / "none")
