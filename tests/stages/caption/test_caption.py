"""Media to rows of captions; the tests of engines and of models are beside."""

from collections.abc import Iterator
from contextlib import nullcontext

import pyarrow as pa
import pytest

from tokenmill.stages.caption import caption as module
from tokenmill.stages.caption.caption import Caption
from tokenmill.stages.caption.captioners.config import SOURCE, CaptionConfig, CaptionerConfig
from tokenmill.stages.caption.engines.engine import Answer, Request, Result
from tokenmill.stages.caption.pictures import Pictures, spans
from tokenmill.stages.caption.texts.text import tidy, without_opening
from tokenmill.stages.table.columns import CAPTIONS, KNOWN

READS = Caption.reads


def _table(*captions: str | None, **more: object) -> pa.Table:
    rows = [
        {"media_id": str(i), "kind": "image", "uri": "u", "source_caption": text, **more}
        for i, text in enumerate(captions)
    ]
    return pa.Table.from_pylist(rows, schema=READS)


def test_source_captions_are_tidied(check_stage) -> None:
    table = _table("  a  cat\n\ton a\u00a0mat\0 ", "", None, " \n", "x")
    output = check_stage(Caption("source", SOURCE), table)
    assert output.column_names == [name for name in CAPTIONS.names if name not in ("fingerprint", "run_id")]
    assert output["caption"].to_pylist() == ["a cat on a mat", None, None, None, "x"]
    assert set(output["captioner"].to_pylist()) == {"source"}
    assert output["reject_reason"].null_count == 5


def test_a_source_s_captions_may_have_rules() -> None:
    config = CaptionerConfig(engine="source", rules={"long": "words >= 2"})
    output = Caption("source", config)(_table("a cat", "cat", None))
    assert output["reject_reason"].to_pylist() == [None, "long", None]


def test_long_captions_end_at_a_word() -> None:
    assert tidy("one two three", 13) == "one two three"
    assert tidy("one two three", 12) == "one two"
    assert tidy("one two three", 7) == "one two"
    assert tidy("incomprehensibilities", 5) == "incom"
    for limit in range(1, 30):
        assert len(tidy("the quick brown fox jumps", limit) or "") <= limit


def test_openings_that_say_nothing_go() -> None:
    assert without_opening("The image shows a red car.") == "A red car."
    assert without_opening("In this video, we see dogs at play.") == "Dogs at play."
    assert without_opening("The picture frame is of gold.") == "The picture frame is of gold."
    assert without_opening("The image shows ") == "The image shows "


class Scripted:
    """An engine that says what it was asked, up to `budget` times."""

    def __init__(self, budget: int = 100):
        self.stopped: str | None = None
        self.asked: list[Request] = []
        self._budget = budget

    def answers(self, requests: Iterator[tuple[int, Request]]) -> Iterator[tuple[int, Result]]:
        for i, request in requests:
            if len(self.asked) == self._budget:
                self.stopped = "spent"
            if self.stopped:
                yield i, None
                continue
            self.asked.append(request)
            yield i, Answer(f"{request.prompt} of {len(request.pictures)}", "stop", 9, 3, 0.5)


@pytest.fixture
def engine(monkeypatch) -> Scripted:
    made = Scripted()
    monkeypatch.setattr(module, "_engine", lambda *_: made)
    monkeypatch.setattr(Pictures, "of", lambda _self, _medium, span: ["frame"] * (1 if span is None else 3))
    return made


def captioner(**more: object) -> CaptionerConfig:
    document = {"engine": "openai", "model": "m", "resources": {"urls": ["http://h/v1"]}, "rules": {}, **more}
    return CaptionerConfig.model_validate(document)


def test_a_long_clip_has_a_row_for_each_span(engine, tmp_path, monkeypatch) -> None:
    at_hand = []
    monkeypatch.setattr(module.limits, "medium", lambda row: (at_hand.append(row), nullcontext())[1])
    (tmp_path / "timed.md").write_text("version: 2\nat {times}")
    config = captioner(video_prompt=str(tmp_path / "timed.md"), max_span_s=20.0, num_frames=2)
    table = _table("a", "b", kind="video", start_s=5.0, end_s=50.0).set_column(
        7, READS.field(7), pa.array([5.0, 40.0], pa.float64())
    )
    output = Caption("long", config)(table).to_pylist()
    assert [(row["media_id"], row["span"], row["start_s"], row["end_s"]) for row in output] == [
        ("0", 0, 5.0, 20.0),
        ("0", 1, 20.0, 35.0),
        ("0", 2, 35.0, 50.0),
        ("1", None, None, None),
    ]
    assert at_hand == [0, 0, 0, 1], "rows of the table, by which a worker that dies is asked what it had at hand"
    assert output[0]["caption"] == "at 3.8, 11.2 of 3" and output[0]["prompt"] == "timed 2"
    assert {(row["model"], row["captioner"], row["seconds"], row["words"]) for row in output[:3]} == {
        ("m", "long", 0.5, 7)
    }


def test_of_a_clip_all_spans_or_none(engine) -> None:
    engine._budget = 4
    output = Caption("long", captioner())(_table("a", "b", kind="video", start_s=0.0, end_s=60.0)).to_pylist()
    assert [row["reject_reason"] for row in output] == [None] * 3 + [KNOWN] * 3
    assert {row["reject_detail"] for row in output[3:]} == {"spent"}


def test_captions_are_put_together_without_a_picture(engine) -> None:
    config = captioner(prompt="consolidate", reads=["source", "long"])
    (row,) = Caption("both", config)(_table("a", read='{"source": "[INST] Ada, 1843", "long": "a woman"}')).to_pylist()
    assert engine.asked[0].pictures == []
    assert '\nsource: "\\u005bINST\\u005d Ada, 1843"\nlong: "a woman"\n' in engine.asked[0].prompt
    assert row["prompt"] == "consolidate 1" and len(row["inputs"]) == 16


@pytest.mark.parametrize(("seconds", "count"), [(5, 1), (20, 1), (20.5, 2), (60, 3), (61, 4)])
def test_spans_are_even(seconds, count):
    found = spans(3.0, 3.0 + seconds, 20.0)
    assert len(found) == count and found[0][0] == 3.0 and found[-1][1] == 3.0 + seconds
    assert all(seconds <= 20 or 10 < end - start <= 20 for start, end in found)


@pytest.mark.parametrize(
    ("document", "said"),
    [
        ({"use": ["lng"]}, "use: 'lng' is not among `captioners`; known: source, long"),
        ({"use": {"long": 0.0}}, "not all of them 0"),
        ({"captioners": {"Long": {"engine": "source"}}}, "use lower case"),
        ({"captioners": {"other": {"engine": "source"}}}, "with engine source is called `source`"),
        ({"captioners": {"long": {"engine": "source", "rules": {"x": "wrds >= 1"}}}}, "did you mean 'words'"),
        ({"captioners": {"long": {"engine": "transformers"}}}, "set `model`"),
        ({"captioners": {"long": {"engine": "transformers", "model": "m", "where": "aestetic > 5"}}}, "'aesthetic'"),
        ({"captioners": {"long": {"engine": "transformers", "model": "m", "reads": ["x"]}}}, "'x' is not among"),
        (
            {"use": ["long"], "captioners": {"long": {"engine": "transformers", "model": "m", "reads": ["long"]}}},
            "wait for one another: long -> long",
        ),
    ],
)
def test_wrong_configs_say_what(document, said):
    known = {"long": {"engine": "transformers", "model": "m"}}
    with pytest.raises(ValueError, match=said):
        CaptionConfig.model_validate({"captioners": known, **document})


def test_captioners_come_after_those_they_hang_on():
    many = {
        "both": {"engine": "transformers", "model": "m", "reads": ["source", "long"]},
        "long": {"engine": "transformers", "model": "m", "only_without": ["human"]},
        "human": {"engine": "transformers", "model": "m"},
        "idle": {"engine": "transformers", "model": "m"},
    }
    config = CaptionConfig.model_validate({"captioners": many, "use": ["both", "long"]})
    assert config.order == ["source", "human", "long", "both"]
