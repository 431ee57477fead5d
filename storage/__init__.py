"""What every floor stands on: where bytes live, what names them, how a failure is said.

In: URIs, local paths and `s3://` alike. Out: bytes, listings, fingerprints, log lines. Nothing here knows of media or
tokens.

    uris.py          local paths and s3:// behind the same functions
    object_store.py  the clients of an S3 store: retries, timeouts, causes
    identity.py      strict configs, fingerprints, content ids
    errors.py        errors that a person can mend; the command line prints them alone
    run_log.py       log.jsonl of a training
    processor.py     what this CPU is, and the dtype it multiplies quickly in
"""

from tokenmill.storage.uris import *  # noqa: F403  what all floors say as `storage.join(...)`
