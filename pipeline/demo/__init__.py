"""`tokenmill demo`: a corpus drawn from exact captions, a whole run on it, and a verdict on what the model draws.

In: nothing. Out: a contact sheet.

    show.py        the demo from corpus to contact sheet
    scenes.py      scenes drawn from exact captions
    questions.py   questions about them, each with its one right answer
    broken.py      files broken on purpose
    captions.py    captions hidden, written by a captioner trained on the rest, and judged
    joins.py       scenes that a web page says something of, and a model that joins that with what was seen
    pictures.py    its pictures and clips beside what their codes decode to
    judge.py       which colours, shapes and relations a picture shows
"""
