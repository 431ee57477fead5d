"""The tables of a root, and who may write there.

In: rows. Out: versions of Delta tables, records of runs, leases; what was trained, exported and forgotten.

    log/                the Delta log: calls, seals, copies of commits
    tables.py           the Delta tables: append, edit, scan, versions
    shard_files.py      rows to a new file of a table: its name and schema
    dataset.py          the tables as others read them
    versions.py         what each run changed, how two versions differ
    join.py             what has no row elsewhere, by the driver or by the cluster
    scans.py            data files read: whole, in parts, where something is
    sql.py              tables asked in SQL, in bounded memory
    chosen.py           which caption training reads of each medium
    records.py          what each run was
    lease.py            one run at a time on a root
    ledger.py           the sources table while files and members are read
    forgotten.py        what must not come back, as hashes
    fetched.py          what URLs gave, as long as it is needed
    export_registry.py  where media were exported to
    models.py           where trained models stand
"""
