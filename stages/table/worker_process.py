"""A process that runs Chains for another one, over a pipe: tables in, tables out, until the pipe closes.

It imports what its stages need and no Ray, so it answers half a second after its start, and keeps the models of the
last Chain between tables. A stage's exception goes back to be raised there; a decoder that kills or hangs it
(limits.py) takes down this process alone, and the other side sees the pipe close.
"""

import os
import pickle
import select
import signal
import threading
import traceback
from multiprocessing.connection import Connection
from typing import Any

import pyarrow as pa

from tokenmill.stages.table.at_hand import worker_notes
from tokenmill.stages.table.chain import Chain, StageSpec
from tokenmill.stages.table.limits import Limits

Job = tuple[int, tuple[StageSpec, ...], Limits, bytes]  # number of the Chain, its stages, limits, a table


def packed(table: pa.Table) -> bytes:
    """A table as bytes that hold its rows alone, also where it is a slice of a larger one."""
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    return sink.getvalue().to_pybytes()


def unpacked(data: bytes) -> pa.Table:
    """The inverse of `packed`."""
    return pa.ipc.open_stream(data).read_all()


def main(descriptor: int, folder: str) -> None:
    """Serve the pipe with this file descriptor until its other end closes; note in `folder` what is at hand."""
    for which in (signal.SIGINT, signal.SIGTERM):  # the other side's to hear; it closes the pipe
        signal.signal(which, signal.SIG_IGN)
    pipe: Connection = Connection(descriptor)
    threading.Thread(target=_end_with, args=(descriptor,), name="other side", daemon=True).start()
    notes = worker_notes(folder)
    chain, number = None, None
    while True:
        try:
            job: Job = pipe.recv()
        except EOFError:
            return
        try:
            if chain is None or job[0] != number:
                chain = None  # the models of the last one go before those of the next come
                chain, number = Chain(job[1], job[2], notes), job[0]
            answer: Any = [packed(part) for part in chain.stream(unpacked(job[3]))]
        except Exception as error:  # whatever it is, it is raised on the other side
            answer = _sendable(error)
        pipe.send(answer)


def _end_with(descriptor: int) -> None:
    """End this process when the other side is gone, also in the middle of a table: whoever is next may do it, too."""
    looked = select.poll()
    looked.register(descriptor, 0)  # a hang-up alone
    looked.poll()
    os._exit(0)


def _sendable(error: Exception) -> Exception:
    """The error with its traceback as a note, or, where it cannot be sent, one that says the same."""
    text = traceback.format_exc()
    try:
        error.add_note(text)
        return error if isinstance(pickle.loads(pickle.dumps(error)), type(error)) else RuntimeError(text)
    except Exception:  # an error whose class cannot be rebuilt from its arguments
        return RuntimeError(text)
