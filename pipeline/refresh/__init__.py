"""Sources beside the catalog -> what is left to do.

In: what the sources hold, what the tables hold. Out: rows to compute; tables made to agree with the sources again.

    sources.py  what the sources hold, and their captions
    refresh.py  what is left to do; tables made to agree with the sources
"""
