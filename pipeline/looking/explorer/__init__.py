"""A root looked at alive: `tokenmill explore`, a page on this machine alone.

In: a config. Out: a grid of its media, a page for each, copies, thresholds as sliders, votes as lines of JSON.

    server.py     the addresses, and what each answers
    guard.py      who may ask: a token, this host, this origin; what a page may load
    filters.py    what was asked for in the grid -> SQL over known columns
    moved.py      rules with other thresholds, judged anew over stored scores
    medium.py     all that is known of one medium, now and in versions before
    likeness.py   media nearest to one, or to words, by stored embeddings
    samples.py    drawings of a prompt, two at a time
    votes.py      what people choose, as lines of JSON under the root
"""
