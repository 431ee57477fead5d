"""What a report and the explorer look at a catalog with.

In: a catalog at a version. Out: rows by SQL, small pictures and moving previews of its media.

    query.py     the tables, asked in SQL
    scores.py    scored media with what rules read
    charts.py    histograms and curves as SVG
    previews.py  a medium to a small WebP, a clip to one that moves
"""
