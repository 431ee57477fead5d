"""A plan -> phases carried out: curate, caption, tokenize, train.

In: a config and the names of phases. Out: tables, a model, a record and a report of the run.

    runner.py      plan, phases in order, closing tables
    run.py         one run: its config, catalog, plan and reports
    tell.py        the plan and the stages, printed before the work
    planning.py    the part of it that plans
    curate.py      curate; the tables made to agree with rules and sources
    read_files.py  files of the sources become rows of `media`
    captioning.py  caption: captioners in their order
    served.py      servers that a run starts for its captioners
    tokenizing.py  tokenize
    fill.py        what these two share: media into rows of a table
    redecide.py    the rules on stored scores, without workers
    train.py       a transformer on one version of `tokens`, stage by stage
    given.py       what a stage is given besides: media that its rules leave, dialogues, families
    families.py    media that are held out together, or are like one that is trained on
    pools.py       the stages of each phase and their pools: do they fit
    workers.py     who computes: processes here for little work, Ray for the rest
"""
