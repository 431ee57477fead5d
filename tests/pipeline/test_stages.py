"""Stages of training in a config: a stage says what differs, mistakes are named; and one config may extend another."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from tokenmill.pipeline.config import ConfigError, RunConfig, load

BASE = {"model": {"dropout": 0.1}, "optimizer": {"epochs": 2, "lr": 0.5}, "data": {"context_tokens": 64}}


def config(stages: dict[str, Any], **train: Any) -> RunConfig:
    document = {"root": "r", "sources": [{"uri": "photos"}], "train": {**BASE, **train, "stages": stages}}
    return RunConfig.model_validate(document)


def test_a_stage_says_what_differs():
    train = config({"one": {}, "two": {"data": {"context_tokens": 128}, "optimizer": {"steps": 7}}}).train
    one, two = train.stages.values()
    assert (one.what, one.resources) == (train.what, train.resources)
    assert (two.data.context_tokens, two.optimizer.steps, two.optimizer.epochs, two.optimizer.lr) == (128, 7, None, 0.5)
    assert (train.parent_of("one"), train.parent_of("two"), train.last) == (None, "one", "two")


def test_stages_may_branch():
    train = config({"base": {}, "draws": {}, "reads": {"after": "base"}}, only=["draws"]).train
    assert [train.parent_of(name) for name in train.stages] == [None, "base", "base"]
    assert train.last == "draws"


def test_what_is_dumped_is_what_is_read():
    """A job's config is the dump of another's; also where a stage goes back to a default that the others leave."""
    before = config({"one": {}, "two": {"model": {"dropout": 0.1}}}, model={"dropout": 0.0})
    after = RunConfig.model_validate(before.model_dump(mode="json", exclude_unset=True))
    assert after.train == before.train and after.train.stages["two"].model.dropout == 0.1


@pytest.mark.parametrize(
    ("train", "words"),
    [
        ({"stages": {"Two": {}}}, "stages.Two: use lower case"),
        ({"stages": {"one": {"after": "two"}, "two": {}}}, "stages.one.after: no stage 'two' stands before it.* none"),
        ({"stages": {"one": {}, "two": {"model": {"num_layers": 9}}}}, "stages.two.model.num_layers: 9 .* before, 4"),
        ({"stages": {"one": {"optimiser": {}}}}, "train.stages.one.optimiser: unknown key; .*'optimizer'"),
        ({"stages": {"one": {"data": {"select": {"image": {"x": "aestetic > 5"}}}}}}, "did you mean 'aesthetic'"),
        ({"stages": {"one": {}}, "only": ["qft"]}, "train: only: no stage 'qft'; there are one"),
        ({"only": ["qft"]}, "only: no stage 'qft'; there are none"),
        ({"data": {"text_share": 0.2}}, "train.data.text_share: this key is gone: write train.data.mixture"),
        ({"shards": "out", "data": {"select": {"image": {"x": "aspect < 2"}}}}, "reads scores, which an export"),
    ],
)
def test_mistakes_are_named_once(train, words, tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text(yaml.safe_dump({"root": "r", "sources": [{"uri": "photos"}], "train": train}))
    with pytest.raises(ConfigError, match=words) as caught:
        load(path)
    assert len(str(caught.value).splitlines()) == 1


def test_a_config_extends_another(tmp_path: Path):
    (tmp_path / "base.yaml").write_text(yaml.safe_dump({"root": "r", "sources": [{"uri": "a"}], "train": BASE}))
    (tmp_path / "below").mkdir()
    other = tmp_path / "below" / "mine.yaml"
    other.write_text("extends: ../base.yaml\nsources: [{uri: b}]\ntrain: {optimizer: {steps: 3}}\n")
    loaded = load(other, ["train.optimizer.lr=0.25"])
    assert (loaded.root, [source.uri for source in loaded.sources]) == ("r", ["b"])
    assert (loaded.train.optimizer.steps, loaded.train.optimizer.lr, loaded.train.model.dropout) == (3, 0.25, 0.1)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("extends: mine.yaml\n", "extends itself"),
        ("extends: [base.yaml]\n", "extends: name one config"),
        ("extends: bass.yaml\n", "bass.yaml: no such file; did you mean .*base.yaml"),
    ],
)
def test_a_config_that_extends_nothing(tmp_path, text, words):
    (tmp_path / "base.yaml").write_text(yaml.safe_dump({"root": "r", "sources": [{"uri": "a"}]}))
    (tmp_path / "mine.yaml").write_text(text)
    with pytest.raises(ConfigError, match=words):
        load(tmp_path / "mine.yaml")
