"""What models were trained on is never held out: by version, by file, whole or in part; new rows are."""

import numpy as np
import pyarrow as pa
import pytest
import torch
from PIL import Image
from rich.console import Console

from tokenmill import storage
from tokenmill.pipeline.catalog.tables import Catalog
from tokenmill.pipeline.config import ConfigError, RunConfig
from tokenmill.pipeline.evaluation.ask import Measured, _judge_captions
from tokenmill.pipeline.evaluation.gather import EvalOptions, gather
from tokenmill.pipeline.evaluation.given import Codec
from tokenmill.pipeline.evaluation.likeness import Features, distance
from tokenmill.pipeline.evaluation.unseen import trained_on
from tokenmill.pipeline.refresh.fingerprints import of_tokens
from tokenmill.storage.identity import content_id
from tokenmill.training.data.held_out import FAMILIES, is_held_out
from tokenmill.training.data.spoken import media_key
from tokenmill.training.evaluation import words
from tokenmill.training.job import ANCESTORS, DONE, INPUTS, KIN, PLAN
from tokenmill.training.run.tables import write_table

QUIET = Console(quiet=True)
CONFIG = RunConfig.model_validate({"root": "nowhere", "sources": [{"uri": "x"}], "tokenize": {"model": "builtin"}})
CODED = list(of_tokens(CONFIG).values())


def commit(catalog, media):
    """(media_id, file_id, kind, kept) as a new version."""
    catalog.media.append(
        _rows(
            catalog.media,
            [{"media_id": media_id, "file_id": file_id, "kind": kind} for media_id, file_id, kind, _ in media],
        ),
        {},
    )
    tokens = [
        {
            "media_id": media_id,
            "kind": kind,
            "codes": [] if kind == "text" else [1, 2, 3, 4],
            "grid_t": 1,
            "grid_h": 2,
            "grid_w": 2,
            "fps": 12.0 if kind == "video" else None,
            "caption": f"about {media_id}",
            "fingerprint": "another" if media_id == "m4" else CODED[0],
            "reject_reason": None if is_kept else "corrupt",
        }
        for media_id, _, kind, is_kept in media
    ]
    catalog.tokens.append(_rows(catalog.tokens, tokens), {})
    catalog.tokens.refresh()
    return catalog.tokens.version


def _rows(table, rows):
    """With a value where there must be one."""
    blank = {pa.string(): "x", pa.int64(): 0, pa.int32(): 0, pa.bool_(): False, pa.float64(): 0.0}
    needed = {field.name: blank[field.type] for field in table.schema if not field.nullable}
    return pa.Table.from_pylist([needed | row for row in rows], schema=table.schema)


def finish(root, version, name, before=(), held_out=0.0, families=None):
    uri = storage.join(root, "training", f"v{version:06d}-{name}")
    storage.write_json(storage.join(uri, DONE), {"losses": {}})
    plan = {INPUTS: [], ANCESTORS: [[each, []] for each in before], "config": {"data": {"held_out": held_out}}}
    storage.write_json(storage.join(uri, PLAN), plan)
    if families is not None:
        write_table(families, storage.join(uri, KIN))
    return uri


@pytest.fixture()
def root(tmp_path):
    """Two versions: a picture that is trained on, then another, another part of a trained video, a text, a rejected."""
    Image.fromarray(np.arange(64 * 64 * 3, dtype=np.uint8).reshape(64, 64, 3)).save(tmp_path / "old.png")
    Image.fromarray(np.zeros((64, 64, 3), np.uint8)).save(tmp_path / "new.png")
    old = content_id([(tmp_path / "old.png").read_bytes()])
    catalog = Catalog(str(tmp_path / "root"))
    catalog.create()
    first = commit(catalog, [("m1", old, "image", True), ("c1", "film", "video", True)])
    second = commit(
        catalog,
        [
            ("m2", "fresh", "image", True),
            ("c2", "film", "video", True),
            ("c3", "other film", "video", True),
            ("t1", "page", "text", True),
            ("m3", "bad", "image", False),
            ("m4", "of another tokenizer", "image", True),
        ],
    )
    return catalog.root, first, second


def test_rows_that_no_model_was_given_are_held_out(root):
    uri, first, second = root
    known = trained_on(uri, [finish(uri, first, "abc")])
    assert known.versions == (first,) and not known.unknown
    assert known.fresh(Catalog(uri), 9, CODED) == ["m2", "c3", "t1"]
    assert known.fresh(Catalog(uri), 0, CODED) == []
    later = finish(uri, second, "stage2-abc", before=[f"v{first:06d}-abc", "v000009-elsewhere"])
    known = trained_on(uri, [later])
    assert known.versions == (first, second) and known.unknown == ("v000009-elsewhere",)
    assert known.fresh(Catalog(uri), 9, CODED) == [], "the other model saw them"


def test_what_every_training_held_out_is_too(root, tmp_path):
    uri, _, second = root
    share = 0.4
    keys = np.array([media_key(each) for each in ("m1", "m2", "m3", "c1", "c2", "c3", "t1")], np.uint64)
    out = {key for key, is_out in zip(keys, is_held_out(keys, share), strict=True) if is_out}
    assert 0 < len(out) < len(keys)
    known = trained_on(uri, [finish(uri, second, "abc", held_out=share)])
    catalog = Catalog(uri)
    assert known.fresh(catalog, 9, CODED) == []
    kept = [each for each in ("m1", "m2", "c1", "c3", "t1") if media_key(each) in out]
    assert known.held_out(catalog, 9, CODED) == kept
    config = CONFIG.model_copy(update={"root": uri})
    given = gather(config, EvalOptions(tmp_path / "out"), Codec(config, "cpu"), known, QUIET)
    assert sorted(each.name for each in given.held_out) == sorted(kept)
    assert f"rows that no model was trained on: {len(kept)} held out of training" in given.held_out_from
    near = pa.table({"media": keys[:1], "family": keys[:1], "is_near": [True]}, schema=FAMILIES)
    known = trained_on(uri, [finish(uri, second, "near", held_out=0.99, families=near)])
    assert "m1" not in known.held_out(catalog, 9, CODED), "like one that was trained on"
    both = trained_on(uri, [finish(uri, second, "all"), finish(uri, second, "abc", held_out=share)])
    assert both.held_out(catalog, 9, CODED) == [], "the other was trained on them"


def test_files_that_were_trained_on_are_left_out(root, tmp_path):
    uri, first, _ = root
    config = CONFIG.model_copy(update={"root": uri})
    known = trained_on(uri, [finish(uri, first, "abc")])
    pictures = tmp_path / "pictures"
    pictures.mkdir()
    for name in ("old.png", "new.png"):
        (tmp_path / name).rename(pictures / name)
    codec = Codec(config, "cpu")
    given = gather(config, EvalOptions(tmp_path / "out", pictures=pictures), codec, known, QUIET)
    assert [each.name for each in given.held_out] == ["new.png"] and "trained on 1" in given.notes[0]
    given = gather(config, EvalOptions(tmp_path / "out"), codec, known, QUIET)
    assert {each.name: each.document.modality for each in given.held_out} == {
        "c3": "video",
        "m2": "image",
        "t1": "text",
    }
    assert given.prompts == ["about m2"] and "rows that no model was trained on" in given.held_out_from
    for document in (each.document for each in given.held_out if each.document.modality == "image"):
        assert document.codes.tolist() == [[1, 2], [3, 4]]


def test_distances_tell_near_from_far_and_hang_on_the_seed_alone():
    generator = torch.Generator().manual_seed(0)
    held_out, near = torch.randn(2, 40, 6, generator=generator)
    found = distance(held_out, near, 0)
    far = distance(held_out, near + 2, 0)
    assert found == distance(held_out, near, 0) and found.kid != distance(held_out, near, 1).kid
    assert found.fid < far.fid and found.kid < far.kid and found.subset == 20
    assert distance(held_out, held_out, 0).fid == pytest.approx(0, abs=1e-3)


def test_a_file_that_holds_no_inception_is_named(tmp_path):
    from safetensors.torch import save_file

    save_file({"x": torch.zeros(1)}, tmp_path / "wrong.safetensors")
    with pytest.raises(ConfigError, match="--features .*wrong.safetensors"):
        Features(str(tmp_path / "wrong.safetensors"), "cpu")


def test_captions_without_the_library_name_the_extra(monkeypatch):
    monkeypatch.setattr(words, "has_cider", lambda: False)
    found = Measured("model", "nowhere", captions=["a red circle left of it", "never written of"])
    _judge_captions(found, ["a red circle left of it", None])
    assert found.figures == {"BLEU-4": pytest.approx(1.0)} and found.of == {"BLEU-4": "1 captions"}
    assert "tokenmill[eval]" in found.notes[0]
