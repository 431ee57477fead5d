"""Kept media, tokens and models -> files for others.

In: a catalog. Out: images and clips with captions, or tars for webdataset and wids, brought up to date by the next
call; a trained model as plain transformers opens it.

    files.py       kept media as files
    media.py       an image copied, a video cut into its clips
    webdataset.py  kept token rows as tars
    model.py       the newest model, and what it learned from
"""
