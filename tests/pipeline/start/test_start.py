"""A config that fits what is there, loads and plans; what a machine and a config lack is said with what to do."""

import io
import json
import socket
import tarfile
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import jsonschema
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from PIL import Image
from rich.console import Console

from tokenmill import storage
from tokenmill.pipeline.config import ConfigError, RunConfig, load
from tokenmill.pipeline.run.runner import run_phases
from tokenmill.pipeline.start import machine, places
from tokenmill.pipeline.start.doctor import doctor, examine
from tokenmill.pipeline.start.init import Init, init
from tokenmill.pipeline.start.schema import SCHEMA_FILE, schema, schema_text
from tokenmill.pipeline.start.wanted import models_of
from tokenmill.storage import object_store

QUIET = Console(quiet=True)
CONFIGS = SCHEMA_FILE.parent


def picture(path, side=300):
    path.parent.mkdir(parents=True, exist_ok=True)
    noise = np.random.default_rng(sum(str(path).encode())).integers(0, 255, (side, side, 3), np.uint8)
    Image.fromarray(noise).save(path)
    return path


def made(tmp_path, place, **more):
    out = init(Init(str(place), tmp_path / "made.yaml", str(tmp_path / "root"), **more), QUIET)
    return load(out)


def test_photos_with_captions(tmp_path):
    for number in range(3):
        picture(tmp_path / "photos" / f"{number}.jpg").with_suffix(".txt").write_text("a photo")
    config = made(tmp_path, tmp_path / "photos")
    assert [(source.uri, source.kind) for source in config.sources] == [(str(tmp_path / "photos"), "files")]
    assert set(config.curate.decide.image_rules) >= {"large_enough", "sharp"}
    text = (tmp_path / "made.yaml").read_text()
    assert (
        "video_rules" not in text
        and text.startswith(f"# yaml-language-server: $schema={SCHEMA_FILE}")
        and "3 captions in .txt" in text
    )
    run = run_phases(config, ("curate",), "curate", QUIET)
    assert run.catalog.media.count() == 3


def test_tars_parquet_and_lists_each_get_their_kind(tmp_path):
    place = tmp_path / "all"
    image = picture(tmp_path / "one.png").read_bytes()
    (place / "tars").mkdir(parents=True)
    with tarfile.open(place / "tars" / "0.tar", "w") as tar:
        for name in ("a.png", "b.png"):
            (tmp_path / name).write_bytes(image)
            tar.add(tmp_path / name, name)
    (place / "tables").mkdir()
    pq.write_table(pa.table({"image": [image, image], "caption": ["one", "two"]}), place / "tables" / "0.parquet")
    (place / "lists").mkdir()
    (place / "lists" / "urls.csv").write_text("url,caption\nhttp://127.0.0.1/a.jpg,a\nhttp://127.0.0.1/b.jpg,b\n")
    config = made(tmp_path, place)
    kinds = {source.kind: source.uri for source in config.sources}
    assert kinds == {"webdataset": str(place / "tars"), "parquet": str(place / "tables")}
    text = (tmp_path / "made.yaml").read_text()
    assert f"# - {{uri: {place}/lists, kind: urls}}" in text, "fetching from the web is not begun unasked"


def test_a_tar_of_something_else_is_no_source(tmp_path):
    picture(tmp_path / "all" / "a.jpg")
    (tmp_path / "weights.bin").write_bytes(b"0123" * 99)
    with tarfile.open(tmp_path / "all" / "model.tar", "w") as tar:
        tar.add(tmp_path / "weights.bin", "weights.bin")
    console = Console(file=io.StringIO(), width=200)
    out = init(Init(str(tmp_path / "all"), tmp_path / "made.yaml", str(tmp_path / "root")), console)
    assert [source.kind for source in load(out).sources] == ["files"]
    said = console.file.getvalue()
    assert "1 tars and tables that no source opens" in said and "none came with the media" in said


def test_small_pictures_get_smaller_limits_and_a_look_is_bounded(tmp_path):
    for number in range(5):
        picture(tmp_path / "icons" / f"{number}.png", 64)
    console = Console(file=io.StringIO(), width=200)
    out = init(Init(str(tmp_path / "icons"), tmp_path / "made.yaml", str(tmp_path / "root"), most=3), console)
    said = console.file.getvalue()
    assert "Looked at the first 3 files" in said and "read at least 3 files" in said
    assert load(out).curate.decide.image_rules["large_enough"] == "min(width_px, height_px) >= 32"


def test_documents_with_urls_are_documents(tmp_path):
    (tmp_path / "wiki").mkdir()
    row = {"url": "https://127.0.0.1/a", "title": "A", "text": "words " * 300}
    (tmp_path / "wiki" / "a.jsonl").write_text(json.dumps(row) + "\n")
    assert [source.kind for source in made(tmp_path, tmp_path / "wiki").sources] == ["text"]


def test_what_cannot_be_is_said_before_anything_is_written(tmp_path):
    picture(tmp_path / "photos" / "a.jpg")
    (tmp_path / "empty").mkdir()
    for place, root, words in (
        (tmp_path / "none", tmp_path / "root", "none"),
        (tmp_path / "empty", tmp_path / "root", "there are no images"),
        (tmp_path / "photos", tmp_path / "photos" / "root", "this root would lie within"),
    ):
        with pytest.raises(ConfigError, match=words):
            init(Init(str(place), tmp_path / "made.yaml", str(root)), QUIET)
    assert not (tmp_path / "made.yaml").exists()
    made(tmp_path, tmp_path / "photos")
    with pytest.raises(ConfigError, match="is there already; --force"):
        made(tmp_path, tmp_path / "photos")
    made(tmp_path, tmp_path / "photos", is_forced=True)


def test_a_bucket(tmp_path, s3):
    storage.write_bytes(f"{s3}/photos/a.png", picture(tmp_path / "a.png").read_bytes())
    config = made(tmp_path, f"{s3}/photos")
    assert config.sources[0].uri == f"{s3}/photos"
    at = config.model_copy(update={"root": f"{s3}/root"})
    found = {each.what: each for each in examine(at)}
    assert found["root"].state == "ok" and found["sources.0"].detail.endswith("can be listed and read")
    assert "root: conditional put" not in found
    assert not storage.exists(f"{s3}/root") or not storage.list_names(f"{s3}/root"), "the probe is gone"
    missing = config.model_copy(update={"root": "s3://no-such-bucket/root"})
    (root,) = [each for each in examine(missing) if each.what.startswith("root")]
    assert root.state == "fails" and root.remedy
    assert "test" not in json.dumps([each.detail for each in examine(at)]).split("/"), "no key of the store"


def test_the_schema_is_that_of_the_models_and_takes_every_config():
    assert SCHEMA_FILE.read_text() == schema_text(), "python -m tokenmill.pipeline.start.schema > configs/schema.json"
    checker = jsonschema.Draft202012Validator(schema())
    for path in CONFIGS.glob("*.yaml"):
        document = yaml.safe_load(path.read_text())
        assert not list(checker.iter_errors(document)), path
        assert path.read_text().startswith("# yaml-language-server: $schema=schema.json\n"), path
    wrong = {"root": "a", "sources": [{"uri": "b"}], "curate": {"decied": {}}}
    assert [error.message for error in checker.iter_errors(wrong)]


def config_of(tmp_path, **more):
    corpus = picture(tmp_path / "corpus" / "a.png").parent
    return RunConfig.model_validate({"root": str(tmp_path / "root"), "sources": [{"uri": str(corpus)}]} | more)


def test_a_machine_and_a_config_that_have_all(tmp_path, capsys):
    assert doctor(None, False, QUIET)
    config = config_of(tmp_path)
    assert doctor(config, False, QUIET) and not Path(config.root).exists()
    console = Console(width=200)
    assert doctor(config, True, console)
    assert json.loads(capsys.readouterr().out)["well"] is True


def test_what_a_config_lacks_is_named_with_a_remedy(tmp_path, monkeypatch):
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        port = closed.getsockname()[1]
    (tmp_path / "file").write_text("")
    config = config_of(
        tmp_path,
        root=str(tmp_path / "file" / "root"),
        sources=[{"uri": str(tmp_path / "gone")}],
        tokenize={"model": str(tmp_path / "no-model"), "resources": {"num_gpus": 1}},
        caption={
            "use": ["mine"],
            "captioners": {
                "mine": {
                    "engine": "openai",
                    "model": "m",
                    "resources": {"urls": [f"http://127.0.0.1:{port}/v1"]},
                }
            },
        },
        train={"monitor": {"track": ["wandb"]}, "data": {"text_tokenizer": "some/name"}},
    )
    monkeypatch.setattr(machine, "find_spec", lambda name: None)
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    found = {each.what: each for each in examine(config)}
    failing = {what for what, each in found.items() if each.state == "fails"}
    assert failing == {"GPU", "root", "sources.0", "tokenize.model", "caption.captioners.mine", "tokenmill[wandb]"}
    assert all(found[what].remedy for what in failing)
    assert found["train.data.text_tokenizer"].state == "look"
    assert not doctor(config, False, QUIET)


@pytest.mark.parametrize(("taken", "words"), [(None, "If-None-Match"), (places._FIRST, "If-Match")])
def test_a_store_that_heeds_no_condition_is_no_root(tmp_path, s3, monkeypatch, taken, words):
    """One that overwrites whatever stands there, or whatever tag is given."""
    if taken is None:
        monkeypatch.setattr(places.storage, "swap_bytes", lambda uri, data, expected: True)
    else:
        monkeypatch.setattr(places, "_is_taken", lambda uri: True)
    found = {each.what: each for each in places._bucket(f"{s3}/root")}
    assert found["root: conditional put"].state == "fails" and words in found["root: conditional put"].remedy


def test_a_probe_is_taken_away_also_when_the_rest_fails(s3, monkeypatch):
    def fails(uri: str) -> bytes:
        raise object_store.StoreError(f"{uri}: AccessDenied")

    monkeypatch.setattr(places.storage, "read_bytes", fails)
    monkeypatch.setattr(places, "_is_taken", lambda uri: False)
    (found,) = places._bucket(f"{s3}/root")
    assert found.what == "root: read" and "right to read" in found.remedy
    assert not object_store.client().list_objects_v2(Bucket="bucket").get("Contents")


class Models(BaseHTTPRequestHandler):
    def do_GET(self):  # noqa: N802
        self.send_response({"/v1/models": 200, "/closed/models": 401}.get(self.path, 404))
        self.end_headers()

    def log_message(self, *_):
        pass


def test_servers_are_asked_and_keys_are_looked_for(tmp_path, monkeypatch):
    monkeypatch.delenv("NO_SUCH_KEY", raising=False)
    server = ThreadingHTTPServer(("127.0.0.1", 0), Models)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    base = f"http://127.0.0.1:{server.server_port}"
    urls = [f"{base}/v1", f"{base}/closed", f"{base}/wrong"]
    one = {"engine": "openai", "model": "m", "resources": {"urls": urls, "key_variable": "NO_SUCH_KEY"}}
    config = config_of(
        tmp_path, caption={"use": ["mine"], "captioners": {"mine": one}}, cluster={"address": "127.0.0.1:9"}
    )
    try:
        found = list(examine(config))
    finally:
        server.shutdown()
        server.server_close()
    asked = [each.state for each in found if each.what == "caption.captioners.mine"]
    assert asked == ["ok", "ok", "look"], "401 says that it is there, 404 that the address is doubtful"
    failing = {each.what for each in found if each.state == "fails"}
    assert failing == {"caption.captioners.mine.resources.key_variable", "Ray"}


def test_models_of_the_hub_are_looked_for_in_its_cache(tmp_path, monkeypatch):
    (tmp_path / "models--some--here" / "snapshots" / "abc").mkdir(parents=True)
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    clip = {"model": "some/here", "aesthetic_head": str(tmp_path / "head.safetensors")}
    config = config_of(tmp_path, curate={"clip": clip}, train={"data": {"text_tokenizer": "some/other"}})
    states = {each.what: each.state for each in models_of(config)}
    assert states == {
        "curate.clip.model": "ok",
        "curate.clip.aesthetic_head": "fails",
        "train.data.text_tokenizer": "fails",
    }
    monkeypatch.delenv("HF_HUB_OFFLINE")
    (misspelt,) = models_of(config_of(tmp_path, tokenize={"model": "builtn"}))
    assert (misspelt.state, misspelt.detail) == ("fails", "builtn: no such folder")


def test_no_credentials_are_said(tmp_path, monkeypatch):
    monkeypatch.setenv("MY_SECRET_KEY", "sesame-sesame")
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://me:password1@127.0.0.1:9")
    monkeypatch.setattr(places, "check_sources", raises_with("sesame-sesame"))
    said = json.dumps([(each.detail, each.remedy) for each in examine(config_of(tmp_path))])
    assert "[hidden]" in said and "sesame" not in said and "password1" not in said


def raises_with(word: str):
    def call(*_: object) -> None:
        raise ConfigError(f"sources.0.uri: the store at http://me:password1@127.0.0.1:9 says {word}")

    return call
