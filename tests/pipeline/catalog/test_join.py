"""The cluster's join gives what the driver's memory gives."""

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest

from tokenmill.pipeline.catalog.join import unmatched
from tokenmill.pipeline.catalog.tables import Catalog
from tokenmill.pipeline.config import Cluster
from tokenmill.stages.table.columns import CAPTIONS, MEDIA


def ids(seed: int, count: int) -> list[str]:
    rng = np.random.default_rng(seed)
    return [rng.bytes(16).hex() for _ in range(count)]


def table(schema: pa.Schema, **columns) -> pa.Table:
    count = len(columns["media_id"])
    return pa.table({name: columns.get(name, [None] * count) for name in schema.names}, schema=schema)


@pytest.fixture
def catalog(tmp_path) -> Catalog:
    """300 media in three files, every tenth rejected; 100 of them captioned, 50 of these by another captioner."""
    made = Catalog(str(tmp_path))
    made.create()
    media = ids(1, 300)
    for start in range(0, 300, 100):
        part = media[start : start + 100]
        reasons = ["small" if i % 10 == 0 else None for i in range(100)]
        same = {
            "file_id": part,
            "kind": ["image"] * 100,
            "uri": part,
            "fingerprint": ["f"] * 100,
            "run_id": ["r"] * 100,
        }
        made.media.append(table(MEDIA, media_id=part, reject_reason=reasons, **same), {})
    same = {"captioner": ["source"] * 100, "run_id": ["r"] * 100}
    made.captions.append(table(CAPTIONS, media_id=media[:100], fingerprint=["now"] * 50 + ["old"] * 50, **same), {})
    return made


@pytest.mark.parametrize("join_rows", [1, 20, 299])
def test_both_ways_find_the_same(catalog, local_ray, join_rows):
    left = catalog.media, pc.field("reject_reason").is_null()
    others = [(catalog.duplicates, pc.field("method") != "kept"), (catalog.captions, pc.field("fingerprint") == "now")]
    columns = ["media_id", "uri", "metadata"]
    by_driver = unmatched(left, columns, others, Cluster()).sort_by("media_id")
    by_cluster = unmatched(left, columns, others, Cluster(join_rows=join_rows)).sort_by("media_id")
    assert by_driver.num_rows == 270 - 45
    assert by_cluster.to_pylist() == by_driver.to_pylist()
