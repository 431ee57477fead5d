"""Drawings of a model, and choices between them, for a stage of training that learns from these.

In: a trained model and prompts. Out: a folder of drawings with their codes, a page to vote on, votes by scores.

    drawings.py  drawings of each prompt, kept with their codes
    page.py      a page on which people choose
    scores.py    choices by likeness or aesthetic score
"""
