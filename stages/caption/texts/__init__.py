"""Texts of captions -> which of them count, and which one training reads of each medium.

In: answers, rules, rows of captions. Out: what rules read, verdicts, one caption of each medium.

    text.py      a caption on one line, within a length
    measure.py   what rules over captions read
    verdicts.py  rules over captions: what counts
    choose.py    captions of several captioners to the one that training reads
"""
