"""Videos -> clips with scores, in one decode.

In: bytes of a video. Out: a row for each scene, with scores at 2 FPS.

    split.py    videos to clips, one decode
    decode.py   a video as frames with presentation times
    frames.py   a few frames out of a video, by the quickest way that is exact
    sparse.py   one of these ways: PyAV without what no wanted frame needs
    samples.py  a clip's scores at 2 FPS, optical flow among them
"""
