"""A catalog, its runs and models -> one HTML file that opens anywhere.

In: a config whose root holds a catalog, and maybe an older version. Out: a page without scripts or requests, at most
8 MB whatever the catalog's size.

    report.py    the page: its parts put together and written
    accounts.py  files to trained tokens, with every reason; what runs read, computed and spent
    tokens.py    codes by kind, grids, use of the codebook
    rules.py     each rule: its scores, its threshold, media just on either side
    media.py     copies, clips, captions and verdicts as pictures
    models.py    what was trained: losses, samples
    changes.py   what came, went and was judged anew since another version
    pictures.py  pictures inside the page, as far as its size goes
"""
