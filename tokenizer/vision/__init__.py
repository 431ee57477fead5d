"""Pixels <-> codes: one interface over several tokenizers, with the published and the built-in weights.

In: uint8 frames, and a folder, hub name or `builtin`. Out: int64 codes; frames from codes. `training/` makes such
weights, `evaluation/` measures them.

    vision_tokenizer.py  pixels to codes and back: one interface over several tokenizers
    emu3.py              Emu3's networks: exact, a quarter of the work on stills
    stills.py            Chameleon's and Janus' networks: images only
    nearest.py           the nearest code of every vector, without all distances
    batching.py          how many items at a time; compiled, copied while it works
    weights.py           where its weights are, what identifies them
    published.py         BAAI's published layout to transformers'
    convert.py           the same as a folder of safetensors
"""
