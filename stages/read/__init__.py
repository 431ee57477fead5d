"""Listed files and containers -> media with identity, kind and format; later their bytes again.

In: URIs. Out: rows of `media`, one for each file or member, with the reason where it cannot be used.

    read.py         files and members to identity, kind, format
    containers.py   tars, tables, lists of URLs and texts, member by member
    lines.py        lines of a .jsonl, .csv, .tsv and captions.jsonl to rows, malformed ones to reasons
    formats.py      what a file is, by its first bytes
    media_bytes.py  where the bytes of a medium are, for the phases after
"""
