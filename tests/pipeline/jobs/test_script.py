"""The script for Slurm: bash can read it, and it asks Slurm for what the config says."""

import subprocess

import pytest
from job_configs import CLUSTER, config

from tokenmill import PHASES
from tokenmill.pipeline.config import load
from tokenmill.pipeline.jobs.script import script
from tokenmill.pipeline.jobs.states import JobError
from tokenmill.pipeline.jobs.submit import jobs_of


def options(text: str) -> list[str]:
    return [line.removeprefix("#SBATCH --") for line in text.splitlines() if line.startswith("#SBATCH --")]


def made(given, phases=PHASES, folder: str = "/shared/jobs") -> list[str]:
    return [script(job, job.name, folder) for job in jobs_of(given, phases, "slurm")]


def test_bash_reads_every_script():
    for text in made(load(CLUSTER, ["jobs.env={GREETING: it's $HOME}"])):
        done = subprocess.run(["bash", "-n"], input=text, capture_output=True, text=True)
        assert (done.returncode, done.stderr) == (0, "")
        line = next(line for line in text.splitlines() if line.startswith("export GREETING="))
        said = subprocess.run(["bash", "-c", f"{line}; echo $GREETING"], capture_output=True, text=True).stdout
        assert said == "it's $HOME\n"


def test_each_phase_asks_for_its_own_machines():
    curate, small, train = (options(text) for text in made(load(CLUSTER)))
    assert {"nodes=8", "cpus-per-task=32", "mem=128G", "account=vision", "time=12:00:00"} <= set(curate)
    assert not any(option.startswith("gpus") for option in curate)
    assert {"nodes=4", "gpus-per-node=1"} <= set(small)
    assert {"nodes=4", "gpus-per-node=8", "requeue", "no-kill", "exclusive", "dependency=singleton"} <= set(train)
    assert "signal=B:USR1@180" in train


def test_what_the_config_leaves_open_is_the_whole_node(tmp_path):
    (text,) = made(config(tmp_path))
    assert {"nodes=1", "mem=0", "exclusive"} <= set(options(text))
    assert not [option for option in options(text) if option.split("=")[0] in ("cpus-per-task", "partition", "account")]
    (shared,) = made(
        config(
            tmp_path,
            ["jobs.slurm.exclusive=false", "jobs.shapes.default={nodes: 4, min_nodes: 2, cpus: 8, memory_gb: 9}"],
        )
    )
    assert {"nodes=2-4", "cpus-per-task=8", "mem=9G"} <= set(options(shared))
    assert "exclusive" not in options(shared)


def test_secrets_are_names_that_slurm_hands_on(tmp_path):
    (text,) = made(config(tmp_path, ["cluster.nodes.secrets=[HF_TOKEN]"]))
    assert "export=HOME,USER,LOGNAME,LANG,PATH,HF_TOKEN" in options(text)


def test_names_that_slurm_cannot_take_are_refused(tmp_path):
    with pytest.raises(JobError, match="Slurm takes no quotes"):
        made(config(tmp_path), folder='/shared/"jobs"')
