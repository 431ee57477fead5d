"""Kept media -> codes.

In: media. Out: frames at their bucket's size, then rows of token shards.

    load_frames.py  media to frames at their bucket's size
    tokenize.py     frames to codes
"""
