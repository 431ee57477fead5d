"""A place and a machine looked at before the first run: `tokenmill init`, `tokenmill doctor`, `tokenmill schema`.

In: a folder or a prefix, a config, this machine. Out: a config that fits, what is amiss with its remedy. Nothing here
computes on media, and nothing loads a model.

    there.py      what stands at a place, from a bounded look
    fitted.py     that -> a commented config
    init.py       both, and what the first run will do
    schema.py     the config's JSON Schema, for editors
    doctor.py     what is found, said
    machine.py    python, packages, processor, memory, disks, GPUs, Ray
    places.py     root and sources: rights
    wanted.py     models and servers: at hand or not
"""
