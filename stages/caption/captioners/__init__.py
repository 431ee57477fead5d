"""Captioners as data: models, what they are asked, of which media, and how they are reached.

In: a config, prompt files. Out: captioners in their order, their identities, prompts for media.

    config.py   captioners, which of them are used
    prompts.py  prompt files, shipped ones (prompt_files/) and your own; outside text as data
    managed.py  servers that a run starts itself
"""
