"""Manifests are what KubeRay's schemas take, unknown fields refused, whatever the config says."""

import itertools
import re
from copy import deepcopy

import pytest
import yaml
from crds import errors
from job_configs import CLUSTER, KUBERAY, config

from tokenmill import PHASES
from tokenmill.pipeline.config import ConfigError, load
from tokenmill.pipeline.jobs.job import job_of
from tokenmill.pipeline.jobs.kuberay import manifests, text_of

# Independent choices; each alone and each with each other is made below.
CHOICES = [
    ["jobs.kuberay.schedule=0 3 * * *"],
    ["jobs.kuberay.queue=gpus"],
    ["jobs.kuberay.redis=redis:6379"],
    ["cluster.nodes.secrets=[AWS_SECRET_ACCESS_KEY, REDIS_PASSWORD]", "jobs.kuberay.secret=keys"],
    ["jobs.env={AWS_REGION: eu-central-1}"],
    ["jobs.shapes={default: {nodes: 9, min_nodes: 0, cpus: 32, memory_gb: 64}}"],
    ["jobs.shapes={train: {nodes: 4, gpus: 8}, caption: {gpus: 1, node_selector: {gpu: l4}}}"],
    ["jobs.shapes={default: {tolerations: [{key: spot}, {key: team, value: vision, effect: NoExecute}]}}"],
    ["jobs.kuberay.volumes={corpus: /data, scratch: /scratch}"],
]
PAIRS = [[], *CHOICES, *(one + two for one, two in itertools.combinations(CHOICES, 2))]


def is_possible(sets: list[str]) -> bool:
    return not ({"jobs.kuberay.queue=gpus", "jobs.kuberay.schedule=0 3 * * *"} <= set(sets))


@pytest.mark.parametrize("sets", PAIRS, ids=lambda sets: str([text.split(".")[-1][:24] for text in sets]))
def test_every_manifest_is_what_the_schemas_take(sets, tmp_path):
    job = job_of(config(tmp_path, KUBERAY + sets), PHASES, makes_absolute=False)
    if not is_possible(sets):
        with pytest.raises(ConfigError, match="leave queue or schedule out"):
            manifests(job, job.name)
        return
    made = manifests(job, job.name)
    assert [error for each in made for error in errors(each)] == []
    assert list(yaml.safe_load_all(text_of(made))) == made, "the file says the same"


def test_the_schemas_refuse_what_is_misspelt_or_of_a_wrong_kind():
    job = job_of(load(CLUSTER), PHASES, makes_absolute=False)
    _, good = manifests(job, job.name)
    assert errors(good) == []

    def broken(path: str, value: object) -> dict:
        made = deepcopy(good)
        *parents, last = path.split(".")
        node = made
        for part in parents:
            node = node[int(part)] if part.isdigit() else node[part]
        node[int(last) if last.isdigit() else last] = value
        return made

    pod = "spec.rayClusterSpec.workerGroupSpecs.0.template.spec"
    for path, value in (
        ("spec.backofLimit", 3),
        ("spec.backoffLimit", "3"),
        ("spec.rayClusterSpec.workerGroupSpecs.0.maxReplica", 3),
        (f"{pod}.containers.0.resource", {}),
        (f"{pod}.toleration", []),
        (f"{pod}.containers.0.env.0", {"name": "A", "valueFrom": {"secretKeyRef": {"nam": "x", "key": "A"}}}),
    ):
        assert errors(broken(path, value)), f"{path} was taken"


def test_a_manifest_says_what_the_config_says():
    job = job_of(load(CLUSTER), PHASES, makes_absolute=False)
    config_map, made = manifests(job, job.name)
    assert yaml.safe_load(config_map["data"]["config.yaml"])["root"] == "s3://corpora/photos"
    spec, cluster = made["spec"], made["spec"]["rayClusterSpec"]
    sets = "--set cluster.address=auto --set cluster.nodes.max_nodes="
    assert re.fullmatch(rf"tokenmill run /etc/tokenmill/config.yaml {sets}\d+", spec["entrypoint"])
    most = sum(group["maxReplicas"] for group in spec["rayClusterSpec"]["workerGroupSpecs"])
    assert spec["entrypoint"].endswith(f"={1 + most}"), "the head is a node, too"
    assert spec["suspend"] is True
    assert made["metadata"]["labels"]["kueue.x-k8s.io/queue-name"] == "gpus"
    groups = {group["groupName"]: group for group in cluster["workerGroupSpecs"]}
    assert list(groups) == ["curate", "caption-tokenize", "train"]
    assert (groups["train"]["minReplicas"], groups["train"]["maxReplicas"]) == (4, 4)
    pod = groups["train"]["template"]["spec"]
    assert pod["containers"][0]["resources"]["limits"] == {"cpu": "96", "memory": "1024Gi", "nvidia.com/gpu": "8"}
    assert {"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"} in pod["tolerations"]
    assert "tolerations" not in groups["curate"]["template"]["spec"]
    by_name = {each["name"]: each for each in pod["containers"][0]["env"]}
    assert by_name["HF_TOKEN"]["valueFrom"] == {"secretKeyRef": {"name": "tokenmill", "key": "HF_TOKEN"}}


def test_what_is_missing_is_said(tmp_path):
    without = job_of(config(tmp_path, KUBERAY[:2]), PHASES, makes_absolute=False)
    with pytest.raises(ConfigError, match=r"jobs.kuberay.image: missing"):
        manifests(without, without.name)
    secret = job_of(config(tmp_path, [*KUBERAY, "cluster.nodes.secrets=[HF_TOKEN]"]), PHASES, makes_absolute=False)
    with pytest.raises(ConfigError, match=r"jobs.kuberay.secret: missing"):
        manifests(secret, secret.name)
