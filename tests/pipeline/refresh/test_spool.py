"""Rows that may be many: the same whether they are held in memory or in a file, which goes with them."""

import gc
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pytest

from tokenmill.pipeline.catalog import sql
from tokenmill.pipeline.refresh import spool
from tokenmill.pipeline.refresh.spool import Spool

SCHEMA = pa.schema([pa.field("number", pa.int64(), nullable=False), ("text", pa.string())])


def rows(start: int, stop: int) -> pa.Table:
    return pa.table({"number": range(start, stop), "text": [None, *["x"] * (stop - start - 1)]}, schema=SCHEMA)


@pytest.mark.parametrize("in_memory", [1_000, 25])
def test_all_that_was_added_is_there_once(in_memory, monkeypatch):
    monkeypatch.setattr(spool, "IN_MEMORY_ROWS", in_memory)
    made = Spool(SCHEMA, *(rows(start, start + 10) for start in range(0, 100, 10)), SCHEMA.empty_table())
    whole = pa.concat_tables([rows(start, start + 10) for start in range(0, 100, 10)])
    assert made.num_rows == 100 and made.read().sort_by("number").equals(whole)
    assert made.read(pc.field("number") > 97)["number"].to_pylist() == [98, 99]
    assert made.filtered(lambda part: part.filter(pc.is_null(part["text"]))).num_rows == 10
    (row,) = sql.ask(
        "select sum(number) as sum, $more as more from made", {"more": [1]}, made=made.source()
    ).to_pylist()
    assert row == {"sum": 4950, "more": [1]}
    assert sum(len(part) for part in sql.batches("select * from made", made=made.source())) == 100


def test_its_file_goes_with_it(monkeypatch):
    monkeypatch.setattr(spool, "IN_MEMORY_ROWS", 1)
    made = Spool(SCHEMA, rows(0, 10))
    (path,) = made.source()
    assert Path(path).is_file()
    del made
    gc.collect()
    assert not Path(path).exists()


def test_nothing_is_a_table_too():
    assert (
        Spool(SCHEMA).read().equals(SCHEMA.empty_table())
        and sql.ask("select 1 from made", made=Spool(SCHEMA).source()).num_rows == 0
    )
