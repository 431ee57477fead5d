"""A root looked through for what is damaged, and set right so far that the next run does the rest.

In: a config and its root. Out: problems, each with what hangs on it; with `--repair`, damaged files set aside and
exactly what hangs on them marked.

    problems.py    a problem, and where what is damaged is set aside
    verify.py      all checks in order, and what they found as a table or as JSON
    documents.py   records of runs, the lists of what was forgotten and exported
    logs.py        the logs of the tables: commits and checkpoints
    files.py       the tables' data files: sizes, checksums, content
    references.py  between the tables, and to what URLs gave
    outputs.py     exports, checkpoints, models
"""
