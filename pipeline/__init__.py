"""The conductor: from a config to committed tables and a trained model.

Rooms from below: `catalog/` (the tables), `refresh/` (what differs), `plan/` (what is to do), `flow/` (who computes
it), `run/` (the phases), `jobs/` (the same, submitted), `export/`, `reports/`, `vision/` (the vision tokenizer on a
catalog), `preferences/` (choices between drawings), `evaluation/` (models measured), `commands/`, `demo/`.

    phases.py       the config of each phase
    jobs_config.py  the config of where jobs run: schedulers, machines, names of secrets
    config.py       the YAML, strict; a misspelt key names its neighbour
"""
