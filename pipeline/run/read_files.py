"""Files of the sources become rows of `media`, and what was read of them is recorded in `sources`."""

import pyarrow as pa
import pyarrow.compute as pc

from tokenmill.pipeline.catalog.forgotten import Forgotten
from tokenmill.pipeline.catalog.ledger import KEYS, Ledger
from tokenmill.pipeline.catalog.shard_files import Shard
from tokenmill.pipeline.flow.flow import Sink
from tokenmill.pipeline.refresh import fingerprints, sources
from tokenmill.pipeline.refresh.arrow import is_in
from tokenmill.pipeline.reports.terminal import Meter
from tokenmill.pipeline.run.pools import curate_stages
from tokenmill.pipeline.run.run import Run, rejected


class MalformedLines:
    """Those of tables of text that this run read, and those of every captions.jsonl: counted, the first ones named."""

    def __init__(self, run: Run):
        self.num, self._named = run.listing.num_malformed, list(run.listing.malformed)
        self._counted = run.listing.rows.read(pc.field("container") == "captions")["uri"]

    def add(self, keys: pa.Table) -> None:
        """Count those among rows that were read."""
        is_one = pc.fill_null(pc.equal(keys["reject_reason"], "malformed_line"), False)
        lines = keys.filter(pc.and_(is_one, pc.invert(is_in(keys["uri"], self._counted))))
        self.num += lines.num_rows
        for row in lines.slice(0, sources.NAMED - len(self._named)).select(["uri", "member"]).to_pylist():
            self._named.append(f"{row['uri']}, row {int(row['member'])}")

    def tell(self, meter: Meter) -> None:
        """Say what was found."""
        meter.report.numbers["num_malformed_lines"] = self.num
        if self.num:
            what = "1 malformed line was" if self.num == 1 else f"{self.num} malformed lines were"
            more = ", ..." if self.num > len(self._named) else ""
            meter.note(f"{what} passed over: {', '.join(self._named)}{more}")


def read_files(run: Run, todo: pa.Table, meter: Meter, malformed: MalformedLines) -> None:
    """Send files, rows of LISTING, through the stages."""
    config, catalog, schema = run.config, run.catalog, run.catalog.media.schema
    forgotten, fingerprint = Forgotten.load(catalog.root), fingerprints.of_curate(config)
    todo = todo.append_column("source_caption", sources.with_captions(todo)["source_caption"])
    ledger = Ledger(catalog, forgotten, todo, fingerprint, run.run_id)

    def commit(shard: Shard | None, keys: pa.Table) -> None:
        if shard:
            catalog.media.commit([shard], [], run.note | {"phase": "curate"})
        # Media first: a crash in between re-reads these objects, finds their media known, and records them then.
        ledger.record(keys)
        malformed.add(keys)

    def reject(row: pa.Table, reason: str, detail: str) -> pa.Table:
        said = {"kind": "unknown", "reject_reason": reason, "reject_detail": detail}
        ends = pa.array([None], pa.bool_())
        return rejected(schema, ledger.unread(row) | said).append_column("ends_container", ends)

    known = catalog.media.scan(["media_id"], pc.field("fingerprint") == fingerprint)["media_id"]
    banned, constants = forgotten.id_array(), run.note | {"fingerprint": fingerprint}
    sink = Sink(catalog.root, "media", constants, list(KEYS), commit, known, banned)
    run.workers.run(curate_stages(config), ledger.listed(), "uri", sink, meter, reject, ledger)
