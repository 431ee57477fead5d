"""Phases as jobs of a scheduler: Ray's Jobs API, KubeRay, Slurm.

In: a config and phases. Out: a job that runs `tokenmill run` there, under a name derived from what is run: a second
submission finds the first.

    job.py         what is run -> its name, its config as the machines get it, without secrets
    code.py        the code as it is here -> a folder that Ray ships
    states.py      what all schedulers say of a job
    ray.py         on a Ray cluster that is up
    kuberay.py     manifests for Kubernetes
    kubernetes.py  the same, at an API server
    script.py      the script for Slurm
    slurm.py       the same, in Slurm's queue
    submit.py      the one that was asked for; attach, say that it is done, or submit
"""
