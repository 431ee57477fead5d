"""Answers that outlive the worker that got them, on a disk and in a store."""

from pathlib import Path

import pytest

from tokenmill import storage
from tokenmill.stages.caption import journal
from tokenmill.stages.caption.journal import Journal, answers_of, clear_all_answers, clear_answers, key_of

ROW = {"caption": "a \udc80 circle", "finish_reason": "stop", "tokens_in": 90, "tokens_out": 10}


def test_found_by_medium_and_prompt_until_its_table_is_committed(tmp_path):
    uri = answers_of(str(tmp_path), "f1")
    keys = [key_of(medium, "Describe") for medium in ("a", "b", "c")]
    assert len({*keys, key_of("a", "Tell")}) == 4
    with Journal(uri).block("b") as block:
        block.add(keys[0], ROW)
        assert Journal(uri).found(keys) == {keys[0]: ROW}  # while its writer lives, or was killed
        block.add(keys[1], {"reject_reason": "bad_picture", "reject_detail": "x"})
    with Journal(uri).block("c") as block:
        block.add(keys[2], ROW)
    found = Journal(uri).found(keys)
    assert found.keys() == set(keys) and found[keys[1]]["reject_reason"] == "bad_picture"
    assert Journal(uri).found(keys[:1]) == {keys[0]: ROW}
    assert Journal(answers_of(str(tmp_path), "f2")).found(keys) == {}
    clear_answers(uri, ["a", "b"])
    assert Journal(uri).found(keys) == {keys[2]: ROW}
    clear_all_answers(str(tmp_path))
    assert Journal(uri).found(keys) == {} and list(tmp_path.iterdir()) == []


def test_a_line_that_was_cut_off_is_asked_again(tmp_path):
    uri = str(tmp_path / "answers")
    with Journal(uri).block("z") as block:
        block.add("one", ROW)
        block.add("two", ROW)
    (path,) = Path(uri).iterdir()
    path.write_bytes(path.read_bytes()[:-9])
    assert Journal(uri).found(["one", "two"]) == {"one": ROW}
    path.write_bytes(b"[1]\nnull\n\xff\xfe\n" + path.read_bytes())
    assert Journal(uri).found(["one", "two"]) == {"one": ROW}


def test_without_a_place_nothing_is_kept(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with Journal("").block("z") as block:
        block.add("one", ROW)
    assert Journal("").found(["one"]) == {} and list(tmp_path.iterdir()) == []


def test_in_a_store_answers_go_out_in_parts(s3):
    uri = answers_of(f"{s3}/root", "f1")
    with Journal(uri).block("z") as block:
        for i in range(300):
            block.add(str(i), ROW)
    assert len(storage.list_names(uri)) <= 2
    assert Journal(uri).found([str(i) for i in range(300)]) == {str(i): ROW for i in range(300)}
    clear_answers(uri, ["z"])
    assert storage.list_names(uri) == []


def test_a_store_that_fails_is_told_at_the_end_of_the_table(monkeypatch):
    def fail(*_: object) -> None:
        raise OSError("the store is gone")

    monkeypatch.setattr(journal.storage, "write_bytes", fail)
    with pytest.raises(OSError, match="the store is gone"), Journal("s3://bucket/answers").block("z") as block:
        block.add("one", ROW)
