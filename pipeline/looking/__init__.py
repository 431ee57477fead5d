"""What a report and the explorer look at a catalog with.

In: a catalog at a version. Out: rows by SQL, small pictures and moving previews of its media.

    query.py     the tables, asked in SQL
    previews.py  a medium to a small WebP, a clip to one that moves
"""
