"""Images -> pixels -> scores.

In: bytes of an image. Out: columns of scores, and the small views that models look at.

    score.py      images to scores, one decode
    pixels.py     image bytes to pixels, safely
    measures.py   a picture's scores
    text_area.py  how much of a picture is text
    views.py      the small pictures that models look at
"""
