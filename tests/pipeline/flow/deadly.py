"""A stage for tests, in a module that worker processes can import."""

import ctypes
import os
import signal

import pyarrow as pa

from tokenmill.stages.table import limits
from tokenmill.stages.table.columns import LISTED, MEDIA
from tokenmill.stages.table.rows import without

DONE = without(MEDIA, "fingerprint", "run_id")


class Deadly:
    """Ends its process on `kill`, never returns on `hang`, and holds the interpreter's lock meanwhile."""

    reads = LISTED
    writes = DONE
    drops: tuple[str, ...] = ()
    rows = "same"

    def __call__(self, table: pa.Table) -> pa.Table:
        rows = []
        for uri in table["uri"].to_pylist():
            with limits.medium():
                if uri == "kill":
                    os.kill(os.getpid(), signal.SIGKILL)
                if uri == "hang":
                    ctypes.PyDLL(None).sleep(1000)
                if uri == "raise":
                    raise ValueError("a mistake of the stage")
            rows.append({"media_id": uri, "file_id": uri, "kind": "image", "uri": uri})
        return pa.Table.from_pylist(rows, schema=DONE)
