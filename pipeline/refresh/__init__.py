"""Sources, config and catalog -> what is to do, as plain data; tables made to agree with the sources.

In: what the sources hold, the config, what the tables hold. Out: a plan of each phase; edits that need no medium.

    walk.py              a folder or a prefix to its entries, odd ones named
    sources.py           what the sources hold, and their captions
    plan.py              the plan of a run, phase by phase: printed by `--plan`, carried out by a run
    steps.py             a line of a plan; the catalog as phases before will leave it
    files.py             the plan of curate: files to read, verdicts, what comes and goes
    changes.py           what is new, changed, gone in the sources
    verdicts.py          what the rules say of stored scores
    upkeep.py            the rule that ties the tables together
    captions.py          the plan of caption
    captioners.py        the plan of one captioner
    caption_verdicts.py  what captioners' rules say of stored captions
    likeness.py          captions whose likeness to their medium is to be scored
    forecast.py          what captions by a model will cost
    tokens.py            the plan of tokenize
    media.py             what these two share: media that lack a row
    training.py          the plan of train: which job, on which version of the tokens
    changed_keys.py      why rows do not stand: the keys of the config that changed
    fingerprints.py      what rows of each phase are known by
    edits.py             edits of tables that need no medium
    arrow.py             columns of Arrow tables
"""
