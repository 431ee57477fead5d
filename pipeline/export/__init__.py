"""Kept media, tokens and models -> files for others.

In: a catalog. Out: images and clips with captions, or tars for webdataset and wids, brought up to date by the next
call; a trained model as plain transformers opens it.

    files.py       kept media as files
    hub.py         kept media with captions as Parquet, for the hub
    card.py        its dataset card
    captions.py    captions as lines of JSON
    media.py       an image copied, a video cut into its clips
    webdataset.py  kept token rows as tars
    again.py       a recorded export brought up to date
    model.py       the newest model, and what it learned from
"""
