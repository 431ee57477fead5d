"""Trained models compared: the same held-out pictures, prompts, questions and seeds for each.

In: models of a catalog, prompts, a folder of pictures, questions. Out: eval.json, a table, a page of pictures.

    unseen.py     what the models were trained on, and what is not among it
    given.py      what the models are given: media by their codes, questions, prompts
    held_out.py   a folder, or new rows of the catalog, without what was trained on
    questions.py  a .jsonl of questions and true answers
    gather.py     options to all that is given
    likeness.py   drawings beside prompts, and beside pictures: CLIP, FID, KID
    ask.py        one model measured
    report.py     what was found, as a table, eval.json and eval.png
    evaluate.py   all of it, model after model
"""
