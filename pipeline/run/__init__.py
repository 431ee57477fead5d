"""Config and catalog -> phases, planned, told and carried out.

In: a config and the names of phases. Out: tables, a model, a record and a report of the run.

    runner.py   plan, phases in order, closing tables
    phases.py   curate, caption, tokenize, train over one catalog
    preview.py  what a run will read, compute and write, and why
    plan.py     do the stages' columns fit, does the cluster hold the pools
    workers.py  who computes: processes here for little work, Ray for the rest
"""
