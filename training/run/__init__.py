"""A job -> a trained model.

In: a `TrainJob`. Out: its folder with plan, log, checkpoints, curves and model, whatever was killed on the way.

    loop.py        a job to a trained model
    launch.py      Ray Train around a worker's function, its log watched
    prepare.py     text tokenizer, index and plan, made once
    worker.py      one worker: steps, checkpoints, export
    parallel.py    one model on several workers: copies or shards
    checkpoint.py  complete or not there
    curves.py      loss curves
"""
