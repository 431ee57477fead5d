"""What every floor stands on: where bytes live, what names them, how a failure is said.

In: URIs, local paths and `s3://` alike. Out: bytes, listings, fingerprints, log lines. Nothing here knows of media or
tokens.

    uris.py          local paths and s3:// behind the same functions
    object_store.py  the clients of an S3 store: retries, timeouts, causes
    tensors.py       weights against their config, before memory is taken
    checksums.py     sizes and digests of the files of a folder
    identity.py      strict configs, fingerprints, content ids
    errors.py        errors that a person can mend; the command line prints them alone
    failures.py      what else fails and is no bug, as one line: disks, memory, stores, networks, clusters
    failure_log.py   tracebacks kept in a file, without credentials
    stopping.py      Ctrl-C and SIGTERM
    run_log.py       log.jsonl of a training
    scratch.py       temporary files, which go also after a kill -9
    version.py       which code this is
    cpu.py           what this CPU is, and the dtype it multiplies quickly in
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tokenmill.storage.uris import *  # noqa: F403
else:

    def __getattr__(name: str) -> Any:
        """`storage.join` and all the other names of uris.py, which imports pyarrow: not before one is used."""
        uris = import_module("tokenmill.storage.uris")
        if name not in uris.__all__:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        return globals().setdefault(name, getattr(uris, name))
