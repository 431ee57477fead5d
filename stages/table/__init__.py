"""The contract of a stage: what it reads, writes and drops, on which columns, within which limits.

In: a config. Out: a class from table to table, and how several run in one worker.

    chain.py           what a stage is; neighbouring stages in one worker
    columns.py         the columns of media and captions
    rows.py            how a stage rewrites and rejects rows
    text.py            text from outside, cleaned
    reasons.py         why a row is rejected, reason by reason
    limits.py          a time limit for each medium, from outside the decoder
    worker_process.py  a process that runs chains over a pipe
"""
