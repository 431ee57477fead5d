"""A job -> a trained model.

In: a `TrainJob`. Out: its folder with plan, log, checkpoints, curves and model, whatever was killed on the way.

    loop.py         a job to a trained model
    launch.py       Ray Train around a worker's function, its log watched
    network.py      on which network workers meet
    recovery.py     whether a training goes on that lost workers, and with how many
    notices.py      what it is asked while it runs: save, stop
    prepare.py      text tokenizer, index and plan, made once
    given.py        what it is given besides shards: selected media, dialogues
    tables.py       tables of its folder
    objective.py    what it learns from: its loss, and who reads its packs
    reference.py    the model that preferences start from, on their drawings
    worker.py       one worker: steps, checkpoints
    finish.py       the model in its folder
    sight.py        what is seen of it while it runs
    guard.py        steps that stand out, kept, skipped or the end
    validation.py   loss of held-out documents
    samples.py      pictures of fixed prompts
"""
