"""Refresh: what is left to do after adding, changing, moving, deleting, re-captioning; and the tables' agreement."""

from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pytest

from tokenmill.pipeline.catalog.chosen import chosen_captions
from tokenmill.pipeline.catalog.tables import Catalog
from tokenmill.pipeline.config import Cluster
from tokenmill.pipeline.plan.tokens import to_tokenize
from tokenmill.pipeline.refresh import edits
from tokenmill.pipeline.refresh.arrow import index_in
from tokenmill.pipeline.refresh.changes import source_changes
from tokenmill.pipeline.refresh.sources import LISTING, Listing
from tokenmill.pipeline.refresh.spool import Spool
from tokenmill.pipeline.refresh.steps import Outlook
from tokenmill.pipeline.refresh.upkeep import reconcile
from tokenmill.stages import CaptionConfig
from tokenmill.stages.caption.texts.choose import CHOSEN
from tokenmill.stages.table.columns import CAPTIONS, MEDIA, SOURCES
from tokenmill.stages.tokenize.frames import LoadFramesConfig
from tokenmill.tokenizer.shards import TOKENS

PRINT = "now"
CLUSTER = Cluster()


def rows(schema: pa.Schema, **columns) -> pa.Table:
    count = len(next(iter(columns.values())))
    filled = {field.name: columns.get(field.name, [None] * count) for field in schema}
    return pa.table(filled, schema=schema)


def listing(**etags: str) -> Listing:
    uris = sorted(etags)
    listed = rows(LISTING, uri=uris, etag=[etags[uri] for uri in uris], size_bytes=[1] * len(uris))
    return Listing(Spool(LISTING, listed))


def fill(
    catalog: Catalog, places: dict[str, str], fingerprint: str = PRINT, reject: dict[str, str] | None = None
) -> None:
    """A catalog in which file `uri` has content `file_id`; one medium for each content, captioned and tokenized."""
    uris, count = sorted(places), len(places)
    made = rows(
        SOURCES, uri=uris, etag=[f"etag {uri}" for uri in uris], size_bytes=[1] * count, status=["present"] * count,
        file_id=[places[uri] for uri in uris], fingerprint=[fingerprint] * count, last_seen_run=["r"] * count,
    )  # fmt: skip
    catalog.sources.append(made, {})
    homes: dict[str, str] = {}
    for uri in uris:
        homes.setdefault(places[uri], uri)
    ids = list(homes)
    same = {"media_id": ids, "fingerprint": [fingerprint] * len(ids), "run_id": ["r"] * len(ids)}
    reasons = [(reject or {}).get(i) for i in ids]
    kinds = ["image"] * len(ids)
    made = rows(MEDIA, **same, file_id=ids, kind=kinds, uri=list(homes.values()), reject_reason=reasons)
    catalog.media.append(made, {})
    catalog.captions.append(
        rows(CAPTIONS, **same, caption=[f"of {i}" for i in ids], captioner=["source"] * len(ids)), {}
    )
    catalog.tokens.append(
        rows(TOKENS, **same, kind=kinds, caption=[f"of {i}" for i in ids], codes=[[7]] * len(ids)), {}
    )


@pytest.fixture
def catalog(tmp_path: Path) -> Catalog:
    made = Catalog(str(tmp_path))
    made.create()
    return made


def test_changes_are_told_apart(catalog):
    fill(catalog, {"same": "A", "touched": "B", "deleted": "C"})
    fill(catalog, {"old config": "D"}, fingerprint="before")
    now = listing(same="etag same", touched="other", **{"old config": "etag old config"}, fresh="e")
    changes = source_changes(now, catalog, PRINT)
    assert changes.todo["uri"].to_pylist() == ["fresh", "old config", "touched"]
    assert (changes.num_new, len(changes.changed), changes.num_remeasured) == (1, 1, 1)
    assert changes.gone.to_pylist() == ["deleted"]
    assert changes.num_listed == 4


def test_nothing_changed_means_nothing_to_do(catalog):
    fill(catalog, {"a": "A", "b": "B"})
    changes = source_changes(listing(a="etag a", b="etag b"), catalog, PRINT)
    assert changes.todo.num_rows == changes.recaptioned.num_rows == len(changes.gone) == 0
    versions = [table.version for table in catalog]
    edits.mark_gone(catalog, changes.gone, "run")
    assert not any(reconcile(catalog, PRINT, CaptionConfig(), "run").values())
    assert [table.version for table in catalog] == versions, "an idle refresh made versions"


def test_an_object_that_returns_is_new(catalog):
    fill(catalog, {"a": "A"})
    edits.mark_gone(catalog, pa.array(["a"]), "run")
    assert source_changes(listing(a="etag a"), catalog, PRINT).num_new == 1


def test_a_medium_that_stands_nowhere_leaves_all_tables(catalog):
    fill(catalog, {"a": "A", "b": "B"})
    edits.mark_gone(catalog, pa.array(["a"]), "run")
    done = reconcile(catalog, PRINT, CaptionConfig(), "run")
    assert done == {"moved": 0, "recaptioned": 0, "media": 1, "captions": 1, "tokens": 1}
    for table in (catalog.media, catalog.captions, catalog.tokens):
        assert table.scan(["media_id"])["media_id"].to_pylist() == ["B"]


def test_a_medium_with_another_copy_moves_there(catalog):
    fill(catalog, {"a": "A", "z": "A", "m": "A"})
    edits.mark_gone(catalog, pa.array(["a"]), "run")
    done = reconcile(catalog, PRINT, CaptionConfig(), "run")
    assert {name: count for name, count in done.items() if count} == {"moved": 1}
    assert catalog.media.scan(["uri"])["uri"].to_pylist() == ["m"]


def test_a_medium_that_moves_takes_the_caption_of_its_new_place(catalog):
    fill(catalog, {"a": "A", "b": "B", "z": "A"})
    catalog.sources.edit(pc.field("uri") == "z", lambda found: with_caption(found, "words at z"), {})
    edits.mark_gone(catalog, pa.array(["a"]), "run")
    done = reconcile(catalog, PRINT, CaptionConfig(), "run")
    assert {name: count for name, count in done.items() if count} == {"moved": 1, "recaptioned": 1, "captions": 1}
    assert catalog.media.scan(["source_caption"], pc.field("media_id") == "A")["source_caption"].to_pylist() == [
        "words at z"
    ]
    assert catalog.captions.scan(["media_id"])["media_id"].to_pylist() == ["B"]
    assert not any(reconcile(catalog, PRINT, CaptionConfig(), "run").values())


def with_caption(found: pa.Table, text: str) -> pa.Table:
    return found.set_column(found.schema.get_field_index("caption"), "caption", pa.array([text] * found.num_rows))


def test_rows_of_an_older_config_go_once_their_file_was_measured_anew(catalog):
    fill(catalog, {"a": "A", "b": "B"}, fingerprint="before")
    again = rows(MEDIA, media_id=["A"], file_id=["A"], kind=["image"], uri=["a"], fingerprint=[PRINT], run_id=["r"])
    catalog.media.append(again, {})
    where = pc.field("uri") == "a"
    at = SOURCES.get_field_index("fingerprint")
    catalog.sources.edit(where, lambda found: found.set_column(at, "fingerprint", pa.array([PRINT])), {})
    reconcile(catalog, PRINT, CaptionConfig(), "run")
    found = {row["media_id"]: row["fingerprint"] for row in catalog.media.scan(["media_id", "fingerprint"]).to_pylist()}
    assert found == {"A": PRINT, "B": "before"}


def test_a_source_caption_that_changes_with_the_measuring_redoes_the_caption(catalog):
    fill(catalog, {"a": "A"}, fingerprint="before")
    catalog.media.edit(pc.field("media_id") == "A", lambda found: captioned(found, "old words"), {})
    again = rows(MEDIA, media_id=["A"], file_id=["A"], kind=["image"], uri=["a"], fingerprint=[PRINT], run_id=["r"])
    catalog.media.append(captioned(again, "new words"), {})

    def measured(found: pa.Table) -> pa.Table:
        at = SOURCES.get_field_index("fingerprint")
        return with_caption(found, "new words").set_column(at, "fingerprint", pa.array([PRINT]))

    catalog.sources.edit(pc.field("uri") == "a", measured, {})
    done = reconcile(catalog, PRINT, CaptionConfig(), "run")
    assert (done["recaptioned"], done["captions"], done["media"]) == (1, 1, 1)
    assert catalog.captions.count() == 0
    assert catalog.media.scan(["source_caption"])["source_caption"].to_pylist() == ["new words"]


def captioned(found: pa.Table, text: str) -> pa.Table:
    at = MEDIA.get_field_index("source_caption")
    return found.set_column(at, MEDIA.field(at), pa.array([text] * found.num_rows))


def test_captions_and_tokens_hold_only_kept_media(catalog):
    fill(catalog, {"a": "A", "b": "B"}, reject={"A": "blurred"})
    reconcile(catalog, PRINT, CaptionConfig(), "run")
    assert catalog.media.count() == 2
    assert catalog.tokens.scan(["media_id"])["media_id"].to_pylist() == ["B"]
    assert catalog.captions.scan(["media_id"])["media_id"].to_pylist() == ["B"]


def test_only_missing_work_is_handed_on(catalog):
    fill(catalog, {"a": "A", "b": "B"})
    catalog.tokens.edit(pc.field("media_id") == "A", None, {})
    chosen = chosen_captions(catalog, CaptionConfig())
    todo = to_tokenize(catalog, chosen, [PRINT], Outlook(), LoadFramesConfig(), CLUSTER)
    assert todo.select(["media_id", "caption"]).to_pylist() == [{"media_id": "A", "caption": "of A"}]


def test_media_of_one_bucket_stand_together(catalog):
    fill(catalog, {name.lower(): name for name in "ABCDE"})
    catalog.tokens.edit(pc.field("media_id").is_valid(), None, {})
    sizes = {"A": (640, 480), "B": (480, 640), "C": (1280, 960), "D": (9000, 10), "E": (481, 640)}

    def sized(found: pa.Table) -> pa.Table:
        ids = found["media_id"].to_pylist()
        for position, name in enumerate(("width_px", "height_px")):
            values = pa.array([sizes[media_id][position] for media_id in ids], pa.int32())
            found = found.set_column(found.schema.get_field_index(name), name, values)
        return found

    catalog.media.edit(pc.field("media_id").is_valid(), sized, {})
    todo = to_tokenize(catalog, CHOSEN.empty_table(), [PRINT], Outlook(), LoadFramesConfig(area_px=64 * 64), CLUSTER)
    assert todo["media_id"].to_pylist() == ["B", "E", "A", "C", "D"]


def test_a_changed_source_caption_redoes_the_caption_and_keeps_the_codes(catalog):
    fill(catalog, {"a": "A", "b": "B"})
    changed = rows(LISTING, uri=["a"], etag=["etag a"], size_bytes=[1], caption=["new words"], caption_etag=["c2"])
    edits.recaption(catalog, changed.append_column("source_caption", changed["caption"]), "run")
    assert reconcile(catalog, PRINT, CaptionConfig(), "run")["recaptioned"] == 1
    assert catalog.media.scan(["source_caption"], pc.field("media_id") == "A")["source_caption"].to_pylist() == [
        "new words"
    ]
    assert catalog.captions.scan(["media_id"])["media_id"].to_pylist() == ["B"]
    fixed = rows(
        CAPTIONS, media_id=["A"], caption=["new words"], captioner=["source"], fingerprint=[PRINT], run_id=["r"]
    )
    catalog.captions.append(fixed, {})
    assert edits.sync_captions(catalog, CaptionConfig(), "run") == 1
    assert edits.sync_captions(catalog, CaptionConfig(), "run") == 0
    found = {row["media_id"]: (row["caption"], row["codes"]) for row in catalog.tokens.scan().to_pylist()}
    assert found == {"A": ("new words", [7]), "B": ("of B", [7])}


def test_stale_tokens_go_only_when_replaced(catalog):
    fill(catalog, {"a": "A", "b": "B"}, fingerprint="before")
    assert edits.drop_superseded(catalog.tokens, [PRINT], "run") == 0
    made = rows(TOKENS, media_id=["A"], kind=["image"], codes=[[9]], fingerprint=[PRINT], run_id=["r"])
    catalog.tokens.append(made, {})
    assert edits.drop_superseded(catalog.tokens, [PRINT], "run") == 1
    found = {row["media_id"]: row["codes"] for row in catalog.tokens.scan().to_pylist()}
    assert found == {"A": [9], "B": [7]}


def test_codes_of_another_dtype_stand_until_a_dtype_is_named(catalog):
    """dtype auto: rows made with fp32, with bf16, and with another config; only what stands for none is done anew."""
    fill(catalog, {"a": "A", "b": "B", "c": "C", "d": "D"}, fingerprint="before")

    def tokens(media_id: str, fingerprint: str) -> None:
        catalog.tokens.edit(pc.field("media_id") == media_id, None, {})
        made = rows(TOKENS, media_id=[media_id], kind=["image"], codes=[[9]], fingerprint=[fingerprint], run_id=["r"])
        catalog.tokens.append(made, {})

    tokens("A", "fp32")
    tokens("B", "bf16")
    either, named = ["bf16", "fp32"], ["bf16"]
    todo = to_tokenize(catalog, CHOSEN.empty_table(), either, Outlook(), LoadFramesConfig(), CLUSTER)
    assert sorted(todo["media_id"].to_pylist()) == ["C", "D"]
    todo = to_tokenize(catalog, CHOSEN.empty_table(), named, Outlook(), LoadFramesConfig(), CLUSTER)
    assert sorted(todo["media_id"].to_pylist()) == ["A", "C", "D"]

    again = rows(
        TOKENS, media_id=["A", "C"], kind=["image"] * 2, codes=[[1], [2]], fingerprint=named * 2, run_id=["r"] * 2
    )
    catalog.tokens.append(again, {})
    assert edits.drop_superseded(catalog.tokens, either, "run") == 2
    found = {(row["media_id"], row["fingerprint"]) for row in catalog.tokens.scan().to_pylist()}
    assert found == {("A", "bf16"), ("B", "bf16"), ("C", "bf16"), ("D", "before")}


def named(catalog: Catalog, **of_formats: str | None) -> list[bool | None]:
    """`extension_fits` by media_id, with these columns of formats and once the tables agree."""

    def formatted(found: pa.Table) -> pa.Table:
        for name, value in of_formats.items():
            values = pa.array([value] * found.num_rows, pa.string())
            found = found.set_column(found.schema.get_field_index(name), name, values)
        return found

    catalog.media.edit(pc.field("media_id").is_valid(), formatted, {})
    reconcile(catalog, PRINT, True, "run")
    versions = [table.version for table in catalog]
    reconcile(catalog, PRINT, True, "run")
    assert [table.version for table in catalog] == versions, "done once"
    return catalog.media.scan(["media_id", "extension_fits"]).sort_by("media_id")["extension_fits"].to_pylist()


def test_one_name_with_a_fitting_extension_is_enough(catalog):
    fill(catalog, {"a.png": "A", "b.jpg": "A", "c.png": "C", "d": "D", "e.jpg": "E"})
    assert named(catalog, kind="image", format="jpeg") == [True, False, None, True]
    edits.mark_gone(catalog, pa.array(["b.jpg", "e.jpg"]), "run")
    assert named(catalog) == [False, False, None]
    edits.mark_gone(catalog, pa.array(["a.png"]), "run")
    assert named(catalog) == [False, None]


def test_of_a_video_the_container_counts_where_it_is_known(catalog):
    fill(catalog, {"a.mp4": "A", "b.mkv": "B"})
    assert named(catalog, kind="video", format="h264", container_format="mp4") == [True, False]
    assert named(catalog, container_format="matroska") == [False, True]
    assert named(catalog, container_format=None) == [False, True], "of an older release: as it stands"


@pytest.mark.parametrize("num_known", [3, 2_000])
def test_places_are_found_whichever_side_is_hashed(num_known):
    known = pa.array([f"id {number}" for number in range(num_known)])
    values = pa.chunked_array([["id 2", "nobody", "id 0"], [None, "id 2", f"id {num_known - 1}"]], pa.string())
    found = index_in(values, known)
    assert found.type == pa.int64() and found.to_pylist() == [2, None, 0, None, 2, num_known - 1]
