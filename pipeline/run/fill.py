"""Media that are to do -> rows of `captions` or `tokens`, committed on the way: what the phases caption and tokenize
share.
"""

from collections.abc import Callable
from typing import Any

import pyarrow as pa

from tokenmill.pipeline.catalog.shard_files import Shard
from tokenmill.pipeline.flow.flow import Sink
from tokenmill.pipeline.reports.terminal import Meter
from tokenmill.pipeline.run.pools import PhaseStages
from tokenmill.pipeline.run.run import Run, rejected

NO_KEYS = pa.chunked_array([], pa.string())


def fill(
    run: Run,
    meter: Meter,
    phase: PhaseStages,
    todo: pa.Table,
    fingerprint: str,
    keys: list[str],
    count: Callable[[pa.Table], None],
    known: pa.ChunkedArray = NO_KEYS,
    commit_every_s: float | None = None,
    **constants: Any,
) -> None:
    """Send `todo` through the stages of `phase`; `count` gets the columns `keys` of what is written. `known`: media
    that are in the table already. `constants`: columns of the rows of media that no worker survived.
    """
    table, note = run.table(phase.phase), run.note | {"phase": phase.phase}

    def commit(shard: Shard | None, rows: pa.Table) -> None:
        if shard:
            table.commit([shard], [], note)
        count(rows)

    def reject(row: pa.Table, reason: str, detail: str) -> pa.Table:
        values = {name: row[name][0].as_py() for name in row.schema.names}
        return rejected(table.schema, values | constants | {"reject_reason": reason, "reject_detail": detail})

    made = run.note | {"fingerprint": fingerprint}
    sink = Sink(run.catalog.root, table.name, made, ["media_id", "reject_reason", *keys], commit, known)
    run.workers.run(phase, todo, "media_id", sink, meter, reject, commit_every_s=commit_every_s)
