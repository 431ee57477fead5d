"""Each kind of damage once: it is found, told in one line, set aside, and the next run does what hung on it."""

import hashlib
import json
import random
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
import torch
from deltalake import DeltaTable
from test_damages import Held, check_mended, contents, history
from world import PHASES, QUIET, World

from tokenmill import storage
from tokenmill.pipeline.catalog import shard_files
from tokenmill.pipeline.catalog.forgotten import COPY, LIST, Forgotten
from tokenmill.pipeline.catalog.lease import held as lease_held
from tokenmill.pipeline.catalog.shard_files import Shard
from tokenmill.pipeline.catalog.tables import Catalog, CatalogError
from tokenmill.pipeline.config import RunConfig, load
from tokenmill.pipeline.export.files import export_media
from tokenmill.pipeline.export.webdataset import export_webdataset
from tokenmill.pipeline.reports.status import print_status
from tokenmill.pipeline.run.runner import run_phases
from tokenmill.pipeline.verify import logs
from tokenmill.pipeline.verify.verify import verify
from tokenmill.stages.read.media_bytes import fetched_uri
from tokenmill.stages.table.columns import MEDIA, SOURCES
from tokenmill.storage.errors import DamagedError
from tokenmill.storage.identity import content_id
from tokenmill.tokenizer.shards import TOKENS, write_parquet
from tokenmill.training.checkpoints.checkpoint import Checkpoints
from tokenmill.training.checkpoints.folders import folder_uri, latest
from tokenmill.training.data.index import usable_rows

DAMAGES = {
    "delete": lambda path: path.unlink(),
    "cut": lambda path: path.write_bytes(path.read_bytes()[:-20]),
    "flip": lambda path: flip(path, path.stat().st_size // 3),
}


def flip(path: Path, at: int) -> None:
    data = path.read_bytes()
    path.write_bytes(data[:at] + bytes([data[at] ^ 4]) + data[at + 1 :])


class Prepared:
    """A root after a few runs, to be copied."""

    def __init__(self, folder: Path):
        self.world, self.root = World(folder), folder / "root"
        history(self.world)
        self.held, self.expected = Held(self.root), contents(str(self.root))

    def config(self, root: Path) -> RunConfig:
        return load(self.world.path, [*self.world.sets, f"root={root}"])


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Prepared:
    return Prepared(tmp_path_factory.mktemp("prepared"))


@pytest.fixture
def root(prepared: Prepared, tmp_path: Path) -> Path:
    shutil.copytree(prepared.root, tmp_path / "root")
    return tmp_path / "root"


@pytest.fixture
def config(prepared: Prepared, root: Path) -> RunConfig:
    return prepared.config(root)


def files_of(root: Path, table: str) -> list[Path]:
    return [Path(uri) for uri in Catalog(str(root)).__dict__[table].files()]


def found(config: RunConfig, deep: bool = False) -> list[tuple[str, str, str]]:
    problems = verify(config, deep).problems
    return [(each.kind, each.uri.removeprefix(f"{config.root}/"), each.what) for each in problems]


def test_nothing_is_wrong_and_nothing_is_written(config, root):
    before = {path: path.stat().st_mtime_ns for path in root.rglob("*")}
    assert found(config) == found(config, deep=True) == []
    assert {path: path.stat().st_mtime_ns for path in root.rglob("*")} == before


@pytest.mark.parametrize("table", ["sources", "media", "duplicates", "captions", "tokens"])
@pytest.mark.parametrize("how", DAMAGES)
def test_a_data_file_is_found_and_what_hung_on_it_done_again(config, root, prepared, table, how):
    path = files_of(root, table)[0]
    DAMAGES[how](path)
    name = str(path.relative_to(root))
    assert [each[:2] for each in found(config) if each[0] != "reference"] == [("data file", name)]
    if how != "flip" and table != "captions":  # which reads captions only where they are media's
        with pytest.raises(DamagedError) as error:
            print_status(config, QUIET, False)
        assert "\n" not in str(error.value) and "`tokenmill verify CONFIG --repair`" in str(error.value)
        assert name in str(error.value)
    check_mended(config, prepared.held, [name], prepared.expected, how)
    assert (how == "delete") or list((root / "broken").glob(f"*/{name}"))


def test_what_is_decoded_is_told_in_one_line(config, root):
    """A flip that no decoder survives, where training reads it."""
    path = files_of(root, "tokens")[0]
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(DamagedError, match=r"part-.*damaged or gone.*verify CONFIG --repair"):
        list(usable_rows(str(path), None))


@pytest.mark.parametrize("how", DAMAGES)
@pytest.mark.parametrize("version", [0, 2, -1])
def test_a_commit_is_found_and_stood_in_for(config, root, prepared, how, version):
    commits = sorted((root / "media" / "_delta_log").glob("*.json"))
    path = commits[version]
    newest = Catalog(str(root)).media.version
    if how == "flip":  # of a name; notes of delta-rs have no seal, and matter to nobody
        flip(path, path.read_bytes().rindex(b"media_id" if version == 0 else b"part-"))
    else:
        DAMAGES[how](path)
    name = str(path.relative_to(root))
    assert found(config)[0][:2] == ("log", name)
    check_mended(config, prepared.held, [name], prepared.expected, how)
    assert Catalog(str(root)).media.version >= newest, "numbers are not used twice"


@pytest.mark.parametrize("table", ["sources", "media", "captions", "tokens"])
@pytest.mark.parametrize("version", [0, 1, -1])
def test_a_commit_whose_copy_is_gone_too_costs_what_it_brought(config, root, prepared, table, version):
    """An empty one takes its number."""
    path = sorted((root / table / "_delta_log").glob("*.json"))[version]
    names = [str(path.relative_to(root)), str(path.relative_to(root)).replace("_delta_log", "_log_copies")]
    newest = Catalog(str(root)).__dict__[table].version
    for name in names:
        (root / name).unlink()
    check_mended(config, prepared.held, names, prepared.expected, version)
    assert Catalog(str(root)).__dict__[table].version >= newest


def test_a_copy_is_made_anew(config, root):
    [one, other] = sorted((root / "media" / "_log_copies").glob("*.json"))[1:3]
    one.unlink()
    other.write_bytes(b"{")
    seen = verify(config)
    assert [each.is_harmless for each in seen.problems] == [False, True]
    assert not verify(config, repair=True).open and found(config) == []


def test_a_flip_in_a_commit_is_known_or_changes_nothing(root):
    folder, dice = root / "captions", random.Random(0)

    def state() -> tuple:
        table = DeltaTable(str(folder))
        notes = [{name: note.get(name) for name in ("version", "run_id", "what")} for note in table.history()]
        return sorted(uri.rsplit("/", 1)[1] for uri in table.file_uris()), table.schema().to_json(), notes

    before, num_known = state(), 0
    for path in sorted(folder.glob("_delta_log/*.json"))[:3]:
        data = path.read_bytes()
        for at in dice.sample(range(len(data)), 60):
            path.write_bytes(data[:at] + bytes([data[at] ^ 1 << dice.randrange(8)]) + data[at + 1 :])
            if logs._commit(str(path)) is None:
                num_known += 1
            else:
                assert state() == before, (path.name, data[at - 30 : at + 10])
        path.write_bytes(data)
    assert num_known > 90


@pytest.mark.parametrize("how", ["delete", "cut"])
def test_a_checkpoint_is_set_aside_and_the_commits_stand(config, root, prepared, how):
    DeltaTable(str(root / "tokens")).create_checkpoint()
    [path] = (root / "tokens" / "_delta_log").glob("*.checkpoint.parquet")
    assert found(config) == []
    DAMAGES[how](path)
    assert {each[0] for each in found(config)} == {"log"}
    check_mended(config, prepared.held, [], prepared.expected, how)


def test_a_commit_that_a_checkpoint_covers_is_no_loss(config, root, prepared):
    DeltaTable(str(root / "tokens")).create_checkpoint()
    path = sorted((root / "tokens" / "_delta_log").glob("*.json"))[1]
    path.write_bytes(b"{")
    assert [each[:2] for each in found(config)] == [("log", str(path.relative_to(root)))]
    check_mended(config, prepared.held, [], prepared.expected, "covered")


def test_a_table_that_is_no_more_is_made_anew(config, root, prepared):
    shutil.rmtree(root / "captions")
    kinds = {each[2] for each in found(config)}
    assert kinds == {"commit gone"}
    assert not verify(config, repair=True).open
    run_phases(config, PHASES, "run", QUIET)
    assert contents(str(root)) == prepared.expected


def test_files_of_an_older_release_are_judged_by_size_and_footer(tmp_path):
    """They have no digest in their names: a page that is no page is seen when it is decoded."""
    catalog = Catalog(str(tmp_path / "root"))
    catalog.create()
    rows = pa.Table.from_pylist([token_row(f"{number:032x}") for number in range(50)], TOKENS)
    names = [f"part-{number}.parquet" for number in range(3)]
    for name in names:
        part = rows.set_column(0, TOKENS.field(0), pc.binary_join_element_wise(rows["media_id"], pa.scalar(name), "-"))
        size = write_parquet(part, f"{catalog.tokens.uri}/{name}")
        catalog.tokens.commit([Shard(name, size, 50)], [], {"run_id": "old"})
    config = RunConfig.model_validate({"root": catalog.root, "sources": [{"uri": str(tmp_path)}]})
    data_files = [each for each in found(config) if each[0] == "data file"]
    assert data_files == []
    paths = [Path(catalog.tokens.uri) / name for name in names]
    paths[0].unlink()
    paths[1].write_bytes(paths[1].read_bytes()[:-4] + b"PAR2")
    place = pq.ParquetFile(paths[2]).metadata.row_group(0).column(2)
    data = bytearray(paths[2].read_bytes())
    data[place.data_page_offset : place.data_page_offset + place.total_compressed_size] = bytes(
        place.total_compressed_size
    )
    paths[2].write_bytes(data)
    assert [each[1] for each in found(config) if each[0] == "data file"] == [f"tokens/{name}" for name in names[:2]]
    assert [each[1] for each in found(config, True) if each[0] == "data file"] == [f"tokens/{name}" for name in names]


def token_row(media_id: str, **changes) -> dict:
    row = {"media_id": media_id, "kind": "image", "codes": np.arange(64, dtype=np.uint16), "grid_t": 1, "grid_h": 8}
    row |= {"grid_w": 8, "fingerprint": "f" * 16, "run_id": "test"}
    return dict.fromkeys(TOKENS.names) | row | changes


@pytest.mark.parametrize("changes", [{"codes": np.full(64, 60_000, np.uint16)}, {"grid_h": 7}])
def test_deep_looks_at_codes(config, root, prepared, changes):
    tokens = Catalog(str(root)).tokens
    row = tokens.scan().to_pylist()[0]
    changed = pa.Table.from_pylist([row | changes], TOKENS)
    tokens.edit(pc.field("media_id") == row["media_id"], lambda _: changed, {"run_id": "bad"})
    assert found(config) == []
    [(kind, name, _)] = found(config, deep=True)
    assert kind == "data file" and name.startswith("tokens/")
    verify(config, deep=True, repair=True)
    assert found(config, deep=True) == []
    run_phases(config, PHASES, "run", QUIET)
    assert contents(str(root)) == prepared.expected


def test_rows_of_media_that_are_no_more_are_told_and_removed_by_the_next_run(config, root, prepared):
    catalog = Catalog(str(root))
    catalog.tokens.append(pa.Table.from_pylist([token_row("no medium")], TOKENS), {"run_id": "stray"})
    seen = verify(config)
    assert [each.what for each in seen.problems] == ["1 rows of media that do not go on"] and not seen.open
    run_phases(config, PHASES, "run", QUIET)
    assert contents(str(root)) == prepared.expected and found(config) == []


def test_records_and_the_lease(config, root, prepared):
    record = sorted((root / "runs").glob("*.json"))[-1]
    document = json.loads(record.read_text())
    record.write_text(json.dumps(document | {"command": "ran"}))
    with pytest.raises(DamagedError, match=r"damaged or gone.*verify CONFIG --repair"):
        print_status(config, QUIET, False)
    (root / "runs" / "lease").write_bytes(b"\x00garbage")
    check_mended(config, prepared.held, [], prepared.expected, "record")


def test_the_list_of_what_was_forgotten_has_a_copy(config, root):
    forgotten = Forgotten.load(str(root))
    forgotten.ids |= {"ab" * 16}
    forgotten.save()
    assert found(config) == []
    (root / LIST).unlink()
    with pytest.raises(DamagedError):  # and never a run without it
        run_phases(config, PHASES, "run", QUIET)
    assert [each[:2] for each in found(config)] == [("document", LIST)]
    assert not verify(config, repair=True).open and Forgotten.load(str(root)).ids == {"ab" * 16}
    for name in (LIST, COPY):
        flip(root / name, 20)
    assert len(verify(config, repair=True).open) == 2, "neither is left to mend the other"


def test_members_of_a_container_whose_sources_are_lost(tmp_path):
    from test_containers import photo, write_tar

    write_tar(tmp_path / "tars" / "0.tar", {f"{i:04d}": (photo(i), f"caption {i}") for i in range(6)})
    document = {"root": str(tmp_path / "root"), "sources": [{"uri": str(tmp_path / "tars"), "kind": "webdataset"}]}
    parts = {"curate": {}, "caption": {}, "tokenize": {"frames": {"area_px": 4096}}}
    parts["tokenize"]["resources"] = {"workers": 1}
    config = RunConfig.model_validate(document | parts | {"cluster": {"shard_rows": 2}})
    run_phases(config, PHASES, "run", QUIET)
    expected = contents(config.root)
    sources = Catalog(config.root).sources
    is_members = [file for file in sources.files() if pc.any(pc.is_valid(sources.read_files([file])["member"])).as_py()]
    Path(is_members[0]).unlink()
    assert not verify(config, repair=True).open
    made = run_phases(config, PHASES, "run", QUIET)
    assert [report.num_read for report in made.reports] == [1, 0, 0]
    assert contents(config.root) == expected and found(config, deep=True) == []


def test_what_a_url_gave(tmp_path):
    """A medium whose bytes are gone is fetched again."""
    catalog = Catalog(str(tmp_path / "root"))
    catalog.create()
    ids = [content_id([name.encode()]) for name in "ab"]
    places = [{"uri": "list", "member": f"https://x/{name}", "file_id": ids[at]} for at, name in enumerate("ab")]
    source = {"etag": "1", "size_bytes": 1, "status": "present", "fingerprint": "f", "last_seen_run": "r"}
    medium = {"kind": "image", "fingerprint": "f", "run_id": "r"}
    note = {"run_id": "r"}
    catalog.sources.append(pa.Table.from_pylist([place | source for place in places], SOURCES), note)
    rows = [place | medium | {"media_id": place["file_id"]} for place in places]
    catalog.media.append(pa.Table.from_pylist(rows, MEDIA), note)
    config = RunConfig.model_validate({"root": catalog.root, "sources": [{"uri": str(tmp_path)}]})
    for name, file_id in zip("ab", ids, strict=True):
        storage.write_bytes(fetched_uri(config.fetched, file_id), name.encode())
    assert found(config) == []
    storage.write_bytes(fetched_uri(config.fetched, ids[1]), b"c")
    assert [each[0] for each in found(config)] == ["fetched"]
    verify(config, repair=True)
    sources = Catalog(catalog.root).sources.scan(["file_id", "fingerprint"]).to_pylist()
    assert {row["file_id"]: row["fingerprint"] for row in sources} == {ids[0]: "f", ids[1]: "lost"}
    assert found(config) == [], "it is on its way"


@pytest.fixture
def exported(config, root, tmp_path) -> Iterator[Path]:
    out = tmp_path / "out"
    export_media(config, "image", str(out / "images"), False, QUIET)
    export_webdataset(config, str(out / "tars"), None, 1, False, QUIET)
    yield out


def digests(folder: Path) -> dict[str, str]:
    paths = [path for path in sorted(folder.rglob("*")) if path.is_file() and path.suffix != ".broken"]
    return {path.name: hashlib.md5(path.read_bytes()).hexdigest() for path in paths}


@pytest.mark.parametrize("pattern", ["images/*.png", "tars/*.tar", "tars/*.parquet", "tars/tokenmill.json"])
@pytest.mark.parametrize("how", DAMAGES)
def test_exports_are_written_again(config, exported, pattern, how):
    before = digests(exported)
    path = sorted(exported.glob(pattern))[0]
    assert found(config) == []
    DAMAGES[how](path)
    if pattern == "images/*.png" and how == "delete":
        return  # an image that is not there is one that the next export writes
    [(kind, uri, _)] = found(config)
    assert kind == "export" and uri == str(path)
    assert not verify(config, repair=True).open
    export_media(config, "image", str(exported / "images"), False, QUIET)
    export_webdataset(config, str(exported / "tars"), None, 1, False, QUIET)
    assert found(config) == []
    after = digests(exported)
    if pattern != "tars/*.tar":
        assert after == before
    else:  # a name is never used for other content
        renamed = {name.replace("000001", "000000"): digest for name, digest in after.items()}
        assert renamed["shard-000000.tar"] == before["shard-000000.tar"]


@pytest.mark.parametrize("how", DAMAGES)
@pytest.mark.parametrize("name", ["shard-*.safetensors", "tensors.json", "meta.json"])
def test_a_checkpoint_of_a_training(config, root, how, name):
    uri = f"{root}/training/v000001-12345678"
    model = torch.nn.Linear(64, 64)
    optimizer = torch.optim.AdamW(model.parameters())
    model(torch.ones(1, 64)).sum().backward()
    optimizer.step()
    checkpoints = Checkpoints(uri, model, [optimizer], {"plan": "p"}, keep=2)
    for step in (2, 4):
        checkpoints.begin(step)
    checkpoints.wait()
    assert found(config) == []
    (path,) = Path(folder_uri(uri, 4)).glob(name)
    if (how, name) == ("delete", "meta.json"):
        return  # the remains of a crash, which nobody reads
    DAMAGES[how](path) if name != "meta.json" else path.write_bytes(b"{")
    assert [each[0] for each in found(config)] == ["training"]
    verify(config, repair=True)
    assert found(config) == [] and latest(uri, "p") == 2


def test_a_model_whose_weights_are_damaged_is_not_done(config, root, tmp_path):
    from tokenmill.storage.checksums import write_checksums

    folder = root / "training" / "v000001-12345678" / "model"
    folder.mkdir(parents=True)
    (folder / "model.safetensors").write_bytes(bytes(range(200)))
    write_checksums(folder)
    done = folder.parent / "done.json"
    done.write_text("{}")
    assert found(config) == []
    flip(folder / "model.safetensors", 100)
    assert [each[1] for each in found(config)] == [str((folder / "model.safetensors").relative_to(root))]
    verify(config, repair=True)
    assert not done.exists() and found(config) == []


def test_a_repair_waits_for_no_run_at_work(config, root):
    with lease_held(Catalog(str(root)), "20260101-000000000-abcd", "run"), pytest.raises(CatalogError, match="at work"):
        verify(config, repair=True)


def test_the_command(config, root, prepared):
    files_of(root, "media")[0].unlink()
    command = [sys.executable, "-m", "tokenmill.pipeline.commands.cli", "verify", str(prepared.world.path)]
    for value in [*prepared.world.sets, f"root={root}"]:
        command += ["--set", value]
    exits = []
    for options in ([], ["--json"], ["--repair"], []):
        done = subprocess.run([*command, *options], capture_output=True, text=True)
        exits.append(done.returncode)
        if options == ["--json"]:
            assert [each["kind"] for each in json.loads(done.stdout)["problems"]][0] == "data file"
    assert exits == [1, 1, 0, 0], done.stdout


def test_names_say_what_files_hold(tmp_path):
    rows = pa.Table.from_pylist([token_row("a")], TOKENS)
    shard = shard_files.write_shard(str(tmp_path), "tokens", rows)
    uri = f"{tmp_path}/tokens/{shard.name}"
    assert shard_files.has_digest(uri) and shard_files.is_as_written(uri)
    assert shard.size_bytes == Path(uri).stat().st_size
    flip(Path(uri), 50)
    assert not shard_files.is_as_written(uri) and shard_files.damaged_file([uri]) == uri


def test_a_protocol_without_what_its_version_asks_for_is_damage(root):
    [path] = (root / "captions" / "_delta_log").glob(f"{0:020}.json")
    assert logs._commit(str(path)) is not None
    for name, version in (("minReaderVersion", 3), ("minWriterVersion", 7)):
        lines = [json.loads(line) for line in path.read_text().splitlines()]
        for action in lines:
            action.get("protocol", {})[name] = version
        path.with_name("x.json").write_text("".join(f"{json.dumps(line)}\n" for line in lines))
        assert logs._commit(str(path.with_name("x.json"))) is None
