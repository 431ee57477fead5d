"""Weights and states -> files, and back, on whatever number of workers.

In: a model and its optimizers. Out: checkpoints that are complete or none, and a model as transformers loads it.

    checkpoint.py   weights and states, written while training goes on
    folders.py      which checkpoints are complete
    shard_files.py  their files: parts by all workers at once
    model_files.py  the weights of a finished model, a file at a time
"""
