"""Kept media -> captions: the source's own, or what a model writes.

In: kept media, prompts, a model or the addresses of its servers. Out: rows of captions, each kept or rejected.

    caption.py              media to captions
    config.py               captioners, what they are asked, which of them are used
    managed.py              servers that a run starts itself
    prompts.py              prompt files, shipped ones and your own; outside text as data
    pictures.py             a medium to the pictures that a model sees
    engine.py               what an engine is: requests to answers
    openai_engine.py        answers of OpenAI-compatible servers
    transformers_engine.py  answers of a model in the worker
    servers.py              several servers: how many requests each takes, which are up
    replies.py              what a server says: an answer, a fault of the row, of the server, or the end
    text.py                 its text: on one line, within a length
    measure.py              what rules over captions read
    verdicts.py             rules over captions: what counts
    choose.py               captions of several captioners to the one that training reads
    journal.py              answers kept until they are committed, also by a worker that is killed
"""
