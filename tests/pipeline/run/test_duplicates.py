"""The table `duplicates`: verdicts last, follow changes of the media, and do not depend on order or on crashes."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest
from pydantic import ValidationError

from tokenmill.pipeline.catalog.tables import Catalog, Table
from tokenmill.stages.select.duplicates import DuplicatesConfig, duplicate_ids, find_duplicates, record_duplicates
from tokenmill.stages.table.columns import MEDIA

CONFIG = DuplicatesConfig(near_radius=2)
SEMANTIC = DuplicatesConfig(near_radius=2, semantic_eps=0.1)

# a, a1, a2 are a chain with two bits between neighbours; so are b, b1; the rest are strangers.
HASHES = {"a": 0x0, "a1": 0x3, "a2": 0xF, "b": 0xFFFF0000, "b1": 0xFFFF0003, "c": 0xFFFFFFFF00000000}


@pytest.fixture
def tables(tmp_path: Path) -> Catalog:
    return make_tables(tmp_path / "root")


def make_tables(root: Path) -> Catalog:
    made = Catalog(str(root))
    made.create()
    return made


def add(tables: Catalog, *names: str, **columns) -> None:
    """Media of these names with the hashes of HASHES; `columns` are lists, or one value for all."""
    values = {
        "media_id": list(names),
        "file_id": list(names),
        "kind": "image",
        "uri": list(names),
        "width_px": 100,
        "height_px": 100,
        "sharpness": 1.0,
        "phash": [f"{HASHES[name]:016x}" if name in HASHES else None for name in names],
        "fingerprint": "p",
        "run_id": "r",
    } | columns
    count = len(names)
    lists = {name: value if isinstance(value, list) else [value] * count for name, value in values.items()}
    full = {field.name: lists.get(field.name, [None] * count) for field in MEDIA}
    tables.media.append(pa.table(full, schema=MEDIA), {})


def drop(tables: Catalog, *names: str) -> None:
    tables.media.edit(pc.field("media_id").isin(list(names)), None, {})


def change(tables: Catalog, name: str, **values) -> None:
    def changed(rows: pa.Table) -> pa.Table:
        for column, value in values.items():
            at = MEDIA.get_field_index(column)
            rows = rows.set_column(at, MEDIA.field(at), pa.array([value] * rows.num_rows, MEDIA.field(at).type))
        return rows

    tables.media.edit(pc.field("media_id") == name, changed, {})


def verdicts(tables: Catalog) -> dict[str, str]:
    """Who stands for each."""
    rows = tables.duplicates.scan()
    found = dict(zip(rows["media_id"].to_pylist(), rows["duplicate_of"].to_pylist(), strict=True))
    assert len(found) == rows.num_rows, "a medium has one verdict"
    assert all(found[other] == other for other in found.values()), "whoever stands for another is kept"
    is_kept = [method == "kept" for method in rows["method"].to_pylist()]
    assert is_kept == [name == other for name, other in found.items()]
    return found


def decide(tables: Catalog, config: DuplicatesConfig, run_id: str) -> dict[str, int]:
    found = find_duplicates(tables, config)
    counts = record_duplicates(tables, found, run_id)
    assert sorted(found.aside.to_pylist()) == sorted(duplicate_ids(tables).to_pylist()), "foretold and written"
    return counts


def find(tables: Catalog, config: DuplicatesConfig = CONFIG) -> dict[str, str]:
    decide(tables, config, "run")
    return verdicts(tables)


def test_the_best_stays_and_the_table_says_why_the_others_do_not(tables):
    add(tables, "a", "a1", "b", width_px=[100, 200, 50])
    counts = decide(tables, CONFIG, "run 7")
    assert counts == {"compared": 3, "kept": 2, "near": 1}
    rows = {row.pop("media_id"): row for row in tables.duplicates.scan().to_pylist()}
    assert rows["a"] | {"fingerprint": ""} == {
        "duplicate_of": "a1", "method": "near", "distance": 2.0, "fingerprint": "", "run_id": "run 7"
    }  # fmt: skip
    assert rows["a1"]["distance"] is None
    assert duplicate_ids(tables).to_pylist() == ["a"]


def test_more_pixels_then_sharpness_then_the_id_decide(tables):
    add(tables, "a", "a1", height_px=[100, 101], sharpness=[9.0, 1.0])
    add(tables, "b", "b1", sharpness=[1.0, None])
    add(tables, "c", "c1", phash="ffffffff00000000")
    assert find(tables) == {"a": "a1", "a1": "a1", "b": "b", "b1": "b", "c": "c", "c1": "c"}


def test_again_makes_no_version(tables):
    add(tables, "a", "a1", "b", "no hash")
    first = decide(tables, CONFIG, "run")
    version = tables.duplicates.version
    assert decide(tables, CONFIG, "other run") == first | {"compared": 0}
    assert tables.duplicates.version == version == 1
    assert "no hash" not in verdicts(tables), "what cannot be compared has no verdict"


def test_new_media_give_way_to_kept_ones(tables):
    add(tables, "a", "b")
    find(tables)
    add(tables, "a1", "b1", "c", width_px=999)
    assert find(tables) == {"a": "a", "a1": "a", "b": "b", "b1": "b", "c": "c"}
    assert tables.duplicates.version == 2


def test_a_bridge_gives_way_and_both_kept_ones_stay(tables):
    add(tables, "a", "a2", width_px=[100, 101])
    assert find(tables) == {"a": "a", "a2": "a2"}
    add(tables, "a1", width_px=999)
    assert find(tables) == {"a": "a", "a2": "a2", "a1": "a2"}


def test_only_media_of_one_kind_are_compared(tables):
    add(tables, "a", "a1", kind=["image", "video"])
    add(tables, "b", "b1", kind="video")
    assert find(tables) == {"a": "a", "a1": "a1", "b": "b", "b1": "b"}


def test_when_the_kept_one_goes_the_best_of_its_duplicates_takes_its_place(tables):
    add(tables, "a", "a1", "b", "b1", width_px=[300, 100, 300, 100])
    add(tables, "a2", width_px=200)
    assert find(tables)["a1"] == find(tables)["a2"] == "a"
    drop(tables, "a")
    change(tables, "b", reject_reason="blurred")
    assert find(tables) == {"a1": "a2", "a2": "a2", "b1": "b1"}
    assert tables.duplicates.version == 2, "one version for all changes"


def test_a_duplicate_that_is_gone_leaves_and_one_that_returns_gives_way(tables):
    add(tables, "a", "a1", width_px=[100, 50])
    find(tables)
    change(tables, "a1", reject_reason="blurred")
    assert find(tables) == {"a": "a"}
    change(tables, "a1", reject_reason=None, width_px=900)
    assert find(tables) == {"a": "a", "a1": "a"}


def test_earlier_duplicates_stay_though_the_link_is_gone(tables):
    add(tables, "a", "a1", "a2", width_px=[300, 200, 100])
    assert find(tables) == {"a": "a", "a1": "a", "a2": "a"}
    drop(tables, "a1")
    assert find(tables) == {"a": "a", "a2": "a"}


def test_another_config_decides_anew_from_what_is_stored(tables):
    add(tables, "a", "a2", width_px=[100, 200])
    assert find(tables) == {"a": "a", "a2": "a2"}
    assert find(tables, DuplicatesConfig(near_radius=4)) == {"a": "a2", "a2": "a2"}
    assert tables.media.version == 1
    assert find(tables, DuplicatesConfig(near_radius=None)) == {}
    assert decide(tables, DuplicatesConfig(near_radius=None), "run")["kept"] == 0
    assert len(duplicate_ids(tables)) == 0


def test_the_order_of_rows_and_their_files_do_not_matter(tmp_path):
    rng = np.random.default_rng(0)
    bits = np.array([1 << bit for bit in range(12)], np.uint64)
    hashes = np.bitwise_xor.reduce(np.where(rng.random((80, 12)) < 0.5, bits, np.uint64(0)), axis=1)
    names, sizes = [f"m{i:02d}" for i in range(80)], rng.integers(1, 5, 80)
    results = []
    for number, pieces in enumerate((1, 4)):
        other = make_tables(tmp_path / str(number))
        for piece in np.array_split(rng.permutation(80), pieces):
            texts = [f"{hashes[i]:016x}" for i in piece]
            add(other, *(names[i] for i in piece), phash=texts, width_px=sizes[piece].tolist())
        results.append(find(other))
    assert results[0] == results[1]
    assert 5 < len(set(results[0].values())) < 80


def test_a_run_that_was_killed_before_deciding_leaves_no_trace(tables, tmp_path):
    """Media that were committed by a killed run are as new as those of its successor."""
    undisturbed = make_tables(tmp_path / "undisturbed")
    for each in (tables, undisturbed):
        add(each, "b")
        find(each)
    add(tables, "a", width_px=100)  # killed here
    add(tables, "a1", "b1", width_px=200)
    add(undisturbed, "a", "a1", "b1", width_px=[100, 200, 200])
    assert find(tables) == find(undisturbed) == {"a": "a1", "a1": "a1", "b": "b", "b1": "b"}


def test_a_run_that_was_killed_while_deciding_leaves_no_trace(tables, monkeypatch):
    add(tables, "a", "a1")
    find(tables)
    drop(tables, "a")
    add(tables, "a2", width_px=200)
    before = verdicts(tables)
    with monkeypatch.context() as broken:
        broken.setattr(Table, "commit", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            decide(tables, CONFIG, "killed")
    assert verdicts(tables) == before
    assert find(tables) == {"a1": "a2", "a2": "a2"}


def test_a_medium_measured_anew_is_no_copy_of_itself(tables):
    add(tables, "a", "b")
    add(tables, "a", fingerprint="q")
    assert find(tables) == {"a": "a", "b": "b"}


# Embeddings on a circle, named by their angles in degrees; eps 0.1 is 25.8 degrees.
def at(*degrees: float) -> list[list[float]]:
    return [[float(np.cos(np.radians(angle))), float(np.sin(np.radians(angle))), 0.0] for angle in degrees]


def test_semantic_duplicates_give_way_to_the_most_beautiful(tables):
    add(tables, "x", "y", "z", embedding=at(0, 20, 90), aesthetic=[4.0, 5.0, 3.0], width_px=[999, 1, 1])
    counts = decide(tables, SEMANTIC, "run")
    assert counts == {"compared": 3, "kept": 2, "near": 0, "semantic": 1, "without_embedding": 0}
    assert verdicts(tables) == {"x": "y", "y": "y", "z": "z"}
    distance = tables.duplicates.scan(["distance"], pc.field("media_id") == "x")["distance"][0].as_py()
    assert distance == pytest.approx(1 - np.cos(np.radians(20)), abs=1e-3)
    version = tables.duplicates.version
    assert decide(tables, SEMANTIC, "run") == counts | {"compared": 0}
    assert tables.duplicates.version == version


def test_semantic_verdicts_last_too(tables):
    add(tables, "x", "y", embedding=at(0, 20), aesthetic=[5.0, 4.0])
    find(tables, SEMANTIC)
    add(tables, "w", "z", embedding=at(-20, 40), aesthetic=9.0)
    assert find(tables, SEMANTIC) == {"x": "x", "y": "x", "w": "x", "z": "z"}, "y ranks below z"
    drop(tables, "x")
    assert find(tables, SEMANTIC) == {"w": "w", "y": "z", "z": "z"}


def test_semantic_compares_one_kind_and_vectors_of_one_length(tables):
    add(tables, "x", "y", kind=["image", "video"], embedding=at(0, 0))
    add(tables, "z", embedding=[[1.0, 0.0]])
    assert find(tables, SEMANTIC) == {"x": "x", "y": "y", "z": "z"}


def test_near_duplicates_follow_their_kept_one(tables):
    add(tables, "a", "a1", "x", embedding=at(0, 80, 5), aesthetic=[4.0, 3.0, 5.0], width_px=[200, 100, 100])
    assert find(tables, SEMANTIC) == {"a": "x", "a1": "x", "x": "x"}
    row = tables.duplicates.scan(None, pc.field("media_id") == "a1").to_pylist()[0]
    assert (row["method"], row["distance"]) == ("semantic", None)
    assert find(tables, SEMANTIC) == {"a": "x", "a1": "x", "x": "x"}


def test_a_near_duplicate_is_not_compared_by_meaning(tables):
    add(tables, "a", "a1", "z", embedding=at(0, 80, 90), width_px=[200, 100, 300])
    assert find(tables, SEMANTIC) == {"a": "a", "a1": "a", "z": "z"}
    add(tables, "y", embedding=at(70), width_px=50)
    assert find(tables, SEMANTIC)["y"] == "z", "also not as one of an earlier run"


def test_a_copy_of_a_semantic_duplicate_is_judged_by_its_own_meaning(tables):
    add(tables, "a", "b", embedding=at(20, 0), width_px=[1, 2])
    assert find(tables, SEMANTIC) == {"a": "b", "b": "b"}
    add(tables, "a1", "a2", embedding=at(90, 10))
    assert find(tables, SEMANTIC) == {"a": "b", "b": "b", "a1": "a1", "a2": "a1"}


def test_a_duplicate_whose_kept_one_changes_its_vector_is_no_longer_compared(tables):
    add(tables, "x", "y", embedding=at(0, 20), width_px=[2, 1])
    find(tables, SEMANTIC)
    change(tables, "x", embedding=[1.0, 0.0])
    add(tables, "z", embedding=at(40), width_px=[0])
    assert find(tables, SEMANTIC) == {"x": "x", "y": "x", "z": "z"}


def test_a_medium_is_decided_again_when_it_gets_its_embedding(tables):
    add(tables, "x", "y", embedding=at(0, 10))
    add(tables, "a", "b", width_px=500)
    assert decide(tables, SEMANTIC, "run")["without_embedding"] == 2
    assert verdicts(tables) == {"x": "x", "y": "x", "a": "a", "b": "b"}
    change(tables, "a", embedding=at(5)[0])
    counts = decide(tables, SEMANTIC, "run")
    assert (counts["compared"], counts["without_embedding"]) == (1, 1)
    assert verdicts(tables) == {"x": "x", "y": "x", "a": "x", "b": "b"}


def test_whoever_stood_for_another_and_gives_way_leaves_it_to_be_decided_again(tables):
    add(tables, "a", "a1", "x", width_px=[300, 200, 100], embedding=[None, None, at(0)[0]])
    assert find(tables, SEMANTIC) == {"a": "a", "a1": "a", "x": "x"}
    change(tables, "a", embedding=at(5)[0])
    assert find(tables, SEMANTIC) == {"a": "x", "a1": "x", "x": "x"}


def test_semantic_without_any_embedding_changes_no_verdict(tables):
    add(tables, "a", "a1", "b")
    before = find(tables)
    version = tables.duplicates.version
    assert decide(tables, SEMANTIC, "run")["without_embedding"] == 3
    assert verdicts(tables) == before
    assert tables.duplicates.version == version


@pytest.mark.parametrize(
    "values",
    [
        {"near_radius": 16},
        {"near_radius": -1},
        {"semantic_eps": 0.0},
        {"semantic_eps": 1.0},
        {"num_clusters": 0},
        {"radius": 3},
    ],
)
def test_impossible_configs_are_refused(values):
    with pytest.raises(ValidationError):
        DuplicatesConfig(**values)
