"""A stage for tests, in a module that worker processes can import."""

import ctypes
import os
import signal
import tempfile

import numpy as np
import pyarrow as pa

from tokenmill.stages.table import limits
from tokenmill.stages.table.columns import LISTED, MEDIA
from tokenmill.stages.table.rows import RowError, without

LOG = "tried"  # in the temporary folder
DONE = without(MEDIA, "fingerprint", "run_id")


class Deadly:
    """Ends its process on `kill`, never returns on `hang`, and holds the interpreter's lock meanwhile."""

    reads = LISTED
    writes = DONE
    drops: tuple[str, ...] = ()
    rows = "same"

    def __call__(self, table: pa.Table) -> pa.Table:
        rows = []
        for number, uri in enumerate(table["uri"].to_pylist()):
            row = {"media_id": uri, "file_id": uri, "kind": "image", "uri": uri}
            if uri == "kill unseen":
                os.kill(os.getpid(), signal.SIGKILL)
            try:
                with limits.medium(number):
                    self._work(uri)
            except RowError as rejected:
                row |= rejected.columns
            rows.append(row)
        return pa.Table.from_pylist(rows, schema=DONE)

    def _work(self, uri: str) -> None:
        with open(os.path.join(tempfile.gettempdir(), LOG), "a") as log:
            log.write(f"{uri}\n")
        if uri == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        if uri == "hang":
            ctypes.PyDLL(None).sleep(1000)
        if uri == "raise":
            raise ValueError("a mistake of the stage")
        if uri == "bomb":
            np.ones(1 << 30, np.uint8)
