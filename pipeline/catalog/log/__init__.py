"""The Delta log of a table: what delta-rs is asked, and what keeps a log readable and mendable.

In: calls, commits. Out: answers, seals, copies.

    calls.py     calls of delta-rs, made again where a store fails
    seals.py     what a commit says of itself
    copies.py    a copy of each commit
    readable.py  columns of other releases, versions whose files are deleted
"""
