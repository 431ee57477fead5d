"""Scores -> who is kept.

In: scores and rules. Out: a verdict with its reason; near-duplicates, and which of them stands for the others.

    decide.py      scores and rules to a verdict
    rules.py       the expressions that rules are written in
    expensive.py   which expensive scores can still change a verdict
    votes.py       what people said of media and captions
    near.py        near-duplicates by perceptual hash
    few.py         few hashes beside many
    semantic.py    duplicates by embedding
    duplicates.py  who stands for whom, by hash and by embedding
"""
