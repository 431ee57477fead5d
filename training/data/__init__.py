"""Token shards -> packs.

In: Parquet shards or tars. Out: which document stands in which pack of which step, and those packs as arrays.

    index.py        one entry per document, from the shards
    text_pieces.py  texts longer than the context, cut
    dialogues.py    questions and answers in a file
    spoken.py       and in the index
    held_out.py     documents that are kept for validation
    pairs.py        drawings and choices between them
    packing.py      best-fit decreasing; no document is cut
    plan.py         which document stands in which pack, step and epoch
    loader.py       the packs of a step and a rank
"""
