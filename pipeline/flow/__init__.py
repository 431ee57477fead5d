"""Rows to do -> committed rows, by worker processes here or by Ray.

In: tables of rows to do, chains of stages. Out: Parquet shards, commits, rejected rows for what kills its worker.

    flow.py      what any flow is: blocks, shards, commits, lost workers
    local.py     a flow in worker processes of this machine
    loopback.py  Ray on this machine alone
    nodes.py     the machines of a cluster: awaited, and asked for code and secrets
    on_ray.py    a flow on Ray
    room.py      room for workers whose machine died, on a cluster that is full
    alone.py     rows that were lost, in workers of their own
    training.py  a training on Ray, begun by a command of its own
    writer.py    blocks to shards
    pool_use.py  how busy the workers of each pool were
    metrics.py   progress as metrics of Ray, for Prometheus
    stalled.py   a phase without a result says so
    waits.py     what a flow waits for where no result comes
"""
