"""What a run is to do, phase by phase, as plain data: printed by `--plan`, carried out by a run.

In: what the sources hold, the config, what the tables hold. Out: steps for people, rows for the stages.

    plan.py              the plan of a run
    settled.py           that there is nothing to do, kept
    files.py             curate: files to read, verdicts, what comes and goes
    captions.py          caption
    captioners.py        caption, of one captioner
    caption_verdicts.py  what captioners' rules say of stored captions
    likeness.py          captions whose likeness to their medium is to be scored
    forecast.py          what captions by a model will cost
    tokens.py            tokenize
    training.py          train: which job, on which version of the tokens
"""
