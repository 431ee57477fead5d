"""The vision tokenizer, trained and judged on the media of a catalog.

In: kept media or a folder. Out: weights for `tokenize.model`; a table, pictures and figures of how good they
are.

    kept.py      the kept media of a catalog, curated first
    train.py     a vision tokenizer trained on them
    worker.py    one worker of that training
    evaluate.py  a vision tokenizer judged on kept media or a folder
    media.py     media as the squares it is judged on
    report.py    its tables, figures and pictures
"""
