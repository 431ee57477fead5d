"""The contract of a stage: what it reads, writes and drops, on which columns, within which limits.

In: a config. Out: a class from table to table, and how several run in one worker.

    chain.py           what a stage is; neighbouring stages in one worker
    columns.py         the columns of media and captions
    rows.py            how a stage rewrites and rejects rows
    text.py            text from outside, cleaned
    reasons.py         why a row is rejected, reason by reason
    at_hand.py         which medium a worker has at hand, for who comes after it
    limits.py          limits of time and memory for each medium, from outside the decoder
    worker_process.py  a process that runs chains over a pipe
"""
