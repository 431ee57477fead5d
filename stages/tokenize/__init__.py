"""Kept media -> codes.

In: media. Out: frames at their bucket's size, then rows of token shards.

    frames.py       one medium to its pixels at their bucket's size
    load_frames.py  kept media to frames
    tokenize.py     frames to codes
"""
