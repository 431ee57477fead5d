"""deploy/: the examples are what `tokenmill submit --dry-run` prints today, and the image's steps can be read."""

import re
import shlex
import subprocess

import pytest
import yaml
from crds import errors
from job_configs import CLUSTER, PROJECT

from tokenmill import PHASES
from tokenmill.pipeline.config import load
from tokenmill.pipeline.jobs.submit import dry_run

DEPLOY = PROJECT / "deploy"
EXAMPLES: dict[str, list[str]] = {
    "kuberay.yaml": ["--on", "kuberay"],
    "kuberay-refresh.yaml": [
        *("--on", "kuberay"),
        *("--set", "jobs.kuberay.schedule=0 3 * * *", "--set", "jobs.kuberay.queue=null"),
    ],
    "slurm.txt": ["--on", "slurm"],
    "ray.txt": ["--on", "ray"],
}


@pytest.mark.parametrize("name", EXAMPLES)
def test_examples_are_not_stale(name, monkeypatch):
    for variable in ("RAY_ADDRESS", "RAY_API_SERVER_ADDRESS"):
        monkeypatch.delenv(variable, raising=False)
    options = EXAMPLES[name]
    sets = [value for key, value in zip(options, options[1:], strict=False) if key == "--set"]
    made = dry_run(load(CLUSTER, sets), PHASES, options[1])
    how = f"tokenmill submit configs/cluster.yaml --dry-run {shlex.join(options)} > deploy/{name}"
    assert (DEPLOY / name).read_text() == made, how


@pytest.mark.parametrize("name", [name for name in EXAMPLES if name.endswith(".yaml")])
def test_examples_for_kubernetes_are_what_the_schemas_take(name):
    documents = list(yaml.safe_load_all((DEPLOY / name).read_text()))
    assert [document["kind"] for document in documents][0] == "ConfigMap"
    assert [error for document in documents for error in errors(document)] == []


def test_the_image_s_steps_can_be_read_and_name_what_is_there():
    assert subprocess.run(["sh", "-n", DEPLOY / "install"]).returncode == 0
    text = (DEPLOY / "Dockerfile").read_text()
    assert re.search(r"^USER 1000:1000$", text, re.MULTILINE), "by number, for runAsNonRoot"
    assert text.index("USER 1000") < text.index("deploy/install ")
    ignored = (PROJECT / ".dockerignore").read_text().split()
    assert not {"deploy", "pyproject.toml", "README.md", "configs"} & set(ignored), "the image is built of these"
    done = subprocess.run(["sh", DEPLOY / "install", "venv", ".", "gpu"], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (1, "deploy/install: variant gpu: cpu or cuda\n")
