"""The conductor: from a config to committed tables and a trained model.

Rooms from below: `catalog/` (the tables), `refresh/` (what differs), `plan/` (what is to do), `flow/` (who computes
it), `run/` (the phases), `export/`, `reports/`, `vision/` (the vision tokenizer on a catalog), `commands/`, `demo/`.

    phases.py  the config of each phase
    config.py  the YAML, strict; a misspelt key names its neighbour
"""
