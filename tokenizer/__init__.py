"""What a token is.

In: pixels and text. Out: ids of one vocabulary, in sequences, in shards. `vision/` turns pixels into codes and back.

    geometry.py           area buckets, one resize, groups of four frames
    text.py               captions to text ids; trains the BPE
    vocabulary.py         one id space for text and codes
    sequence.py           Emu3's sequence layout, and back
    dialogue.py           questions and answers in that layout
    drawings.py           what a model drew, with its codes
    shards.py             the token shard
    webdataset_shards.py  the token shard as a tar
"""
