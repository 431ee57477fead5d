"""Captioners tried on a few media, and one trained on the captions of a catalog, as Emu3 did, and judged.

In: kept media with captions. Out: a folder that engine `transformers` takes as `model`, a loss curve, figures and a
contact sheet of media that it never learned from.

    trial.py   a few media shown to captioners, nothing written
    train.py   a captioner trained, or trained already
    job.py     media with captions of a catalog, to learn from and held out
    joins.py   examples of captions put together, for a training that looks at nothing
    pairs.py   such rows as pairs, opened when they are needed
    worker.py  one worker of that training
    judge.py   what it writes of held-out media, beside the true captions
    report.py  its figures and pictures
"""
