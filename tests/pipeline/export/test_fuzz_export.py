"""Damaged files of an export: what reads it works, or says in one line which file it is."""

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from rich.console import Console

from tests import fuzzing
from tokenmill.pipeline.catalog.tables import Catalog
from tokenmill.pipeline.config import RunConfig
from tokenmill.pipeline.export.webdataset import export_webdataset
from tokenmill.pipeline.verify.outputs import find_exports
from tokenmill.tokenizer.shards import TOKENS
from tokenmill.tokenizer.webdataset_shards import DOCUMENT, members_uri, read_export
from tokenmill.training.data.index import usable_rows
from tokenmill.training.data.loader import RowGroups

pytestmark = pytest.mark.hostile

TAR = "shard-000000.tar"


@pytest.fixture(scope="module")
def exported(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("exported")
    config = RunConfig.model_validate({"root": str(folder / "root"), "sources": [{"uri": "x"}]})
    catalog = Catalog(config.root)
    catalog.create()
    codes = np.arange(12, dtype=np.uint16)
    row = {"kind": "image", "codes": codes, "grid_t": 1, "grid_h": 3, "grid_w": 4, "fingerprint": "f", "run_id": "r"}
    rows = [row | {"media_id": f"{number:032x}", "caption": f"number {number}"} for number in range(4)]
    catalog.tokens.append(pa.Table.from_pylist(rows, schema=TOKENS), {})
    export_webdataset(config, str(folder / "out"), None, 1, False, Console(quiet=True))
    return folder


def restore(out: Path) -> None:
    """The members of a tar are not there, as where a copy left them behind."""
    Path(members_uri(str(out / TAR))).unlink(missing_ok=True)
    read_export(str(out))


def read(out: Path) -> None:
    for shard in read_export(str(out)).document["shards"]:
        for _, rows, _ in usable_rows(str(out / shard["name"]), None):
            rows.to_pylist()


def read_packs(out: Path) -> None:
    RowGroups([str(out / TAR)], 1 << 20).get(0, 0).to_pylist()


READERS: dict[str, tuple[str, Callable[[Path], object], int]] = {
    "document": (DOCUMENT, read, 5_000),
    "document, verified": (DOCUMENT, lambda out: list(find_exports(str(out.parent / "root"))), 5_000),
    "members": (members_uri(TAR), read, 5_000),
    "members, packed": (members_uri(TAR), read_packs, 5_000),
    "members, verified": (members_uri(TAR), lambda out: list(find_exports(str(out.parent / "root"))), 5_000),
    "tar": (TAR, restore, 1_000),
    "tar, packed": (TAR, read_packs, 5_000),
}


@pytest.mark.parametrize(
    ("kind", "num_inputs"),
    [
        pytest.param(kind, *number.values, marks=number.marks, id=f"{kind}-{number.id}")
        for kind, (*_, many) in READERS.items()
        for number in fuzzing.count(many)
    ],
)
def test_a_damaged_file_of_an_export_is_said(ram_path, exported, kind, num_inputs):
    folder = Path(shutil.copytree(exported, ram_path / "exported"))
    (folder / "root" / "exports.json").write_text(
        (folder / "root" / "exports.json").read_text().replace(str(exported), str(folder))
    )
    name, reader, _ = READERS[kind]
    num_said = fuzzing.check_reader(kind, folder / "out" / name, num_inputs, lambda: reader(folder / "out"))
    assert num_said or "verified" in kind
