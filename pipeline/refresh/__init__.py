"""Sources, config and tables compared, and the tables made to agree with the sources.

In: what the sources hold, the config, what the tables hold. Out: what differs, and why; edits that need no medium.

    walk.py          a folder or a prefix to its entries, odd ones named
    sources.py       what the sources hold, and their captions
    spool.py         rows that may be many
    changes.py       what is new, changed, gone in the sources
    verdicts.py      what the rules say of stored scores
    upkeep.py        the rule that ties the tables together
    edits.py         edits of tables that need no medium
    fingerprints.py  what rows of each phase are known by
    changed_keys.py  why rows do not stand: the keys of the config that changed
    media.py         media that lack a row of a config
    steps.py         a line of a plan; the catalog as phases before will leave it
    arrow.py         columns of Arrow tables
"""
