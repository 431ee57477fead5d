"""Config: strict before any work; a mistake is named with file, key and the nearest valid key; identity is what, not
how.
"""

from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import BaseModel

from tokenmill.pipeline.config import ConfigError, RunConfig, Source, load, with_keys_of_today
from tokenmill.pipeline.refresh import fingerprints
from tokenmill.storage.identity import Config, Resources, fingerprint_of

CONFIGS = sorted((Path(__file__).resolve().parents[2] / "configs").glob("*.yaml"))


def write(folder: Path, **changes: Any) -> Path:
    path = folder / "mine.yaml"
    path.write_text(yaml.safe_dump({"root": "r", "sources": [{"uri": "photos"}], **changes}))
    return path


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.name)
def test_every_shipped_config_loads(path):
    assert load(path).sources


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.name)
def test_a_misspelt_key_names_its_neighbour(path, tmp_path):
    document = yaml.safe_load(path.read_text())
    document.setdefault("curate", {}).setdefault("decide", {})["image_rule"] = {}
    if "extends" in document:
        document["extends"] = str(path.parent / document["extends"])
    broken = tmp_path / path.name
    broken.write_text(yaml.safe_dump(document))
    with pytest.raises(ConfigError, match=rf"{path.name}: curate.decide.image_rule: unknown key.*'image_rules'"):
        load(broken)


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"sorces": []}, r"sorces: unknown key; nearest valid key: 'sources'"),
        (
            {"curate": {"split": {"max_clip": 3}}},
            r"curate.split.max_clip: unknown key; nearest valid key: 'max_clip_s'",
        ),
        ({"sources": [{"url": "x"}]}, r"sources.0.url: unknown key; nearest valid key: 'uri'"),
        ({"sources": []}, r"sources: .*at least 1"),
        ({"sources": [{"uri": "x", "kind": "tape"}]}, r"sources.0.kind: .*'files'"),
        ({"cluster": {"shard_rows": "many"}}, r"cluster.shard_rows: .*integer.*'many'"),
        ({"cluster": {"shard_rows": 0}}, r"cluster.shard_rows: .*greater than 0"),
        ({"root": "gs://bucket"}, r"root: use a local path or s3://"),
        (
            {"train": {"optimizer": {"epochs": 1}, "data": {"batch_packs": 4}, "resources": {"min_workers": 3}}},
            r"train: .*resources.min_workers 3 is more than resources.num_workers 1",
        ),
        ({"curate": {"decide": {"image_rules": {"big": "widht_px > 3"}}}}, r"widht_px.*width_px"),
    ],
)
def test_mistakes_are_named(tmp_path, changes, expected):
    with pytest.raises(ConfigError, match=expected) as caught:
        load(write(tmp_path, **changes))
    assert "mine.yaml" in str(caught.value)


def test_text_that_is_no_unicode_is_said(tmp_path):
    (tmp_path / "mine.yaml").write_text('root: r\ncurate: {decide: {image_rules: {a: "\\ud800 > 1"}}}\n')
    with pytest.raises(ConfigError, match=r"mine.yaml: holds text that is no Unicode"):
        load(tmp_path / "mine.yaml")


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"caption": {"caption": {"use": []}}}, "caption.caption.use is now caption.use"),
        ({"caption": {"captioner": "none"}}, "caption.captioner: this key is gone: write caption.use, a list"),
        ({"tokenize": {"tokenize": {"model": "m"}}}, "tokenize.tokenize.model is now tokenize.model"),
        ({"train": {"train": {"data": {}, "seed": 1}}}, "train.train.data is now train.data, train.train.seed is now"),
        ({"train": {"train": 3}}, "train.train: this level is gone: write what it held under train"),
    ],
)
def test_keys_of_older_releases_name_the_new_ones(tmp_path, changes, expected):
    with pytest.raises(ConfigError, match=expected):
        load(write(tmp_path, **changes))
    whole = {"caption": {"caption": {"use": []}, "resources": {}}, "train": {"shards": None}, "root": "r"}
    moved = {"caption": {"use": [], "resources": {}}, "train": {"shards": None}, "root": "r"}
    assert with_keys_of_today(whole) == with_keys_of_today(moved) == moved


def test_results_of_older_releases_stand(monkeypatch):
    """Fingerprints of a release whose config had other keys."""
    config = load(next(path for path in CONFIGS if path.name == "demo.yaml"))
    assert fingerprints.of_captions(config)["source"][1] == "9cb9b4ee62f78a0c"
    monkeypatch.setattr(fingerprints.weights, "identity", lambda _: "weights")
    by_dtype = fingerprints.of_tokens(config)
    assert by_dtype["float32"] == "582d1f9ae9d02548"
    assert fingerprint_of(config.train.what) == "ffa2c5c077b7af7a"
    with pytest.raises(TypeError, match="how, not what"):
        fingerprint_of(config.train)


def test_all_mistakes_are_named_at_once(tmp_path):
    with pytest.raises(ConfigError) as caught:
        load(write(tmp_path, extra=1, cluster={"shard_rows": -1}))
    assert len(str(caught.value).splitlines()) == 2


def test_a_missing_file_names_its_neighbour(tmp_path):
    path = write(tmp_path)
    with pytest.raises(ConfigError, match=r"did you mean .*mine.yaml"):
        load(path.with_name("mime.yaml"))


def test_sets_override(tmp_path):
    path = write(tmp_path)
    sets = [
        "sources.0.uri=~/Pictures",
        "sources.1={uri: more}",
        "cluster.commit_every_s=2.5",
        "curate.resources.workers=3",
    ]
    config = load(path, sets)
    assert [source.uri for source in config.sources] == ["~/Pictures", "more"]
    assert config.cluster.commit_every_s == 2.5
    assert config.curate.resources.workers == 3


@pytest.mark.parametrize(
    ("item", "expected"),
    [
        ("root", "key.sub_key=value"),
        ("sources.7.uri=x", "position"),
        ("root.deep.er=1", "is a value"),
        ("root=2024-99-99", "the value is not YAML"),
        ("clustr.num_cpus=2", "nearest valid key: 'cluster'"),
    ],
)
def test_wrong_sets_are_named(tmp_path, item, expected):
    with pytest.raises(ConfigError, match=expected):
        load(write(tmp_path), [item])


def parts(config: BaseModel) -> list[BaseModel]:
    """A config and all configs inside it."""
    found = [config]
    for name in type(config).model_fields:
        value = getattr(config, name)
        for inner in value if isinstance(value, list) else [value]:
            if isinstance(inner, BaseModel):
                found += parts(inner)
    return found


PARTS = parts(RunConfig(root="r", sources=[Source(uri="photos")]))


def changed(value: Any) -> Any:
    """Another value of the same type."""
    match value:
        case bool():
            return not value
        case int() | float():
            return value + 1
        case str():
            return value + "x"
        case None:
            return 12345
        case dict():
            return {**value, "another": "1"}
        case list() | tuple():
            return [*value, 1]
    return None


def test_every_config_field_changes_the_fingerprint_and_no_resource_can():
    for part in PARTS:
        if isinstance(part, Resources):
            with pytest.raises(TypeError, match="how, not what"):
                fingerprint_of(part)
            continue
        assert isinstance(part, Config)
        for name in _plain(part):
            other = part.model_copy(update={name: changed(getattr(part, name))})
            assert fingerprint_of(_plain(other)) != fingerprint_of(_plain(part)), f"{type(part).__name__}.{name}"


def _plain(config: BaseModel) -> dict[str, Any]:
    return {n: getattr(config, n) for n in type(config).model_fields if not isinstance(getattr(config, n), BaseModel)}


def test_configs_are_small():
    """A dozen keys besides blocks, which are what is split off."""
    for model in map(type, PARTS):
        blocks = {name for name, field in model.model_fields.items() if _is_block(field.annotation)}
        assert len(model.model_fields.keys() - blocks) <= 12, f"{model.__name__} knows too much; split it"
        for name in model.model_fields.keys() - blocks:
            said = model.model_fields[name].description
            assert said or name in ("sources", "kind"), f"{model.__name__}.{name} lacks its line"


def _is_block(annotation: Any) -> bool:
    return isinstance(annotation, type) and issubclass(annotation, BaseModel)


def test_the_fingerprint_refuses_what_it_does_not_know():
    with pytest.raises(TypeError, match="object"):
        fingerprint_of(object())
