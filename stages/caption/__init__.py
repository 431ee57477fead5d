"""Kept media -> captions: the source's own, or what models write.

In: kept media, captioners. Out: rows of captions, each kept or rejected.

    captioners/  what captioners are
    engines/     pictures and prompts to answers
    texts/       what answers are worth, and which one training reads
    caption.py   media to captions
    pictures.py  a medium to the pictures that a model sees
    journal.py   answers kept until they are committed, also by a worker that is killed
"""
