"""One verb per file: each stage is a class that turns one Arrow table of media into the next, with or without Ray.

Rooms in the order that a medium passes them: `table/` (what a stage is), `read/` and `fetch/`, `image/`, `video/`,
`embed/`, `select/`, then captions here and codes in `tokenize/`.

    caption.py  media to captions
"""
