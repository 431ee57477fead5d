"""Which caption of a medium training reads."""

import hashlib
from collections import Counter

import pyarrow as pa

from tokenmill.stages.caption.captioners.config import CaptionConfig
from tokenmill.stages.caption.texts.choose import TO_CHOOSE, choose_captions
from tokenmill.stages.table.columns import CAPTIONS

SCHEMA = pa.schema([CAPTIONS.field(name) for name in TO_CHOOSE])
MODEL = {"engine": "transformers", "model": "m"}
NO_DOCUMENTS = pa.array([], pa.string())


def media_id(number: int) -> str:
    return hashlib.blake2b(str(number).encode(), digest_size=16).hexdigest()


def row(number: int, captioner: str, text: str | None, run: str = "1", **more: object) -> dict:
    return {"media_id": media_id(number), "captioner": captioner, "caption": text, "run_id": run, **more}


def chosen(
    *rows: dict, documents: pa.Array = NO_DOCUMENTS, votes: dict[str, str] | None = None, **config: object
) -> dict[str, tuple[str, str]]:
    part = CaptionConfig.model_validate({"captioners": {"long": MODEL, "short": MODEL}, **config})
    found = choose_captions(pa.Table.from_pylist(list(rows), schema=SCHEMA), part, documents, votes)
    assert found.num_rows == len(set(found["media_id"].to_pylist()))
    return {each["media_id"]: (each["captioner"], each["caption"]) for each in found.to_pylist()}


def test_the_first_of_a_list_that_counts():
    rows = [
        row(1, "source", "s1"),
        row(1, "long", "l1"),
        row(2, "source", "s2"),
        row(2, "long", "I cannot", reject_reason="not_refused"),
        row(3, "source", None),
        row(3, "long", None, reject_reason="bad_picture"),
        row(4, "short", "not asked for"),
    ]
    assert chosen(*rows, use=["long", "source"]) == {media_id(1): ("long", "l1"), media_id(2): ("source", "s2")}
    assert chosen(*rows, use=["source", "long"])[media_id(1)] == ("source", "s1")
    assert chosen(*rows, use=[]) == {}


def test_the_caption_that_a_person_found_best_goes_first_where_it_counts():
    rows = [row(number, name, f"{name} {number}") for number in (1, 2, 3) for name in ("long", "short", "source")]
    rows += [row(4, "long", "l"), row(4, "short", "no", reject_reason="not_refused")]
    rows += [row(1, "short", "newer", run="2")]
    votes = {media_id(1): "short", media_id(2): "source", media_id(4): "short", media_id(9): "long"}
    for use in (["long", "short"], {"long": 0.5, "short": 0.5}):
        found = chosen(*rows, use=use, votes=votes)
        assert found[media_id(1)] == ("short", "newer"), "of the voted one the newest"
        assert found[media_id(2)] == chosen(*rows, use=use)[media_id(2)], "`use` does not name the voted one"
        assert found[media_id(4)] == ("long", "l"), "a caption that was rejected does not count"
        assert found[media_id(3)] == chosen(*rows, use=use)[media_id(3)]


def test_shares_draw_for_each_medium_whatever_else_is_there():
    rows = [row(number, name, name) for number in range(3000) for name in ("long", "short", "source")]
    shares = {"long": 80.0, "short": 15.0, "source": 5.0}
    found = chosen(*rows, use=shares)
    counts = Counter(name for name, _ in found.values())
    assert all(abs(counts[name] / 3000 - share / 100) < 0.02 for name, share in shares.items())
    some = chosen(*(each for each in rows if each["media_id"] < "4"), use=shares)
    assert some == {media_id: found[media_id] for media_id in some} and len(some) > 500
    other = chosen(*rows, use=shares, use_seed=1)
    assert abs(sum(found[i] == other[i] for i in found) / 3000 - (0.8**2 + 0.15**2 + 0.05**2)) < 0.03
    without = chosen(*(each for each in rows if each["captioner"] != "short"), use=shares)
    assert {i for i in found if without[i] != found[i]} == {i for i in found if found[i][0] == "short"}
    assert {without[i][0] for i in found if found[i][0] == "short"} == {"long"}, "the largest share stands in"


def test_a_newer_caption_of_the_same_captioner_comes_first():
    rows = [row(1, "long", "old"), row(1, "long", "new", run="2"), row(2, "long", "old")]
    assert {text for _, text in chosen(*rows, use=["long"]).values()} == {"new", "old"}
    rows[1]["reject_reason"] = "not_refused"
    assert chosen(*rows, use=["long"])[media_id(1)] == ("long", "old")


def test_spans_count_together():
    rows = [row(1, "long", f"part {n}.", span=n) for n in (2, 0, 1)] + [row(1, "source", "s")]
    rows += [row(2, "long", "a", span=0), row(2, "long", "b", span=1, reject_reason="not_too_short")]
    rows += [row(2, "source", "s2"), row(3, "long", "whole")]
    assert chosen(*rows, use=["long", "source"]) == {
        media_id(1): ("long", "part 0. part 1. part 2."),
        media_id(2): ("source", "s2"),
        media_id(3): ("long", "whole"),
    }


def test_length_and_openings_are_for_the_reader():
    rows = [row(1, "long", "The image shows a red car on a road")]
    assert chosen(*rows, use=["long"], max_caption_chars=12)[media_id(1)] == ("long", "A red car on")
    assert chosen(*rows, use=["long"], strip_openings=False)[media_id(1)][1] == "The image shows a red car on a road"


def test_a_document_is_its_own_caption():
    text = "one\ntwo " + "word " * 1000
    rows = [row(1, "source", text), row(2, "source", "s2")]
    assert chosen(*rows, use=[], documents=pa.array([media_id(1)])) == {media_id(1): ("source", text)}
