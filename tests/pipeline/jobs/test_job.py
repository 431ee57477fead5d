"""What is run names the job; how and where it is run do not. The config that goes along is the one that was given."""

import pytest
import yaml
from job_configs import CLUSTER, PROJECT, config

from tokenmill import PHASES
from tokenmill.pipeline.config import ConfigError, RunConfig, load
from tokenmill.pipeline.jobs.job import base_and_attempt, job_of
from tokenmill.pipeline.jobs.submit import jobs_of

CONFIGS = sorted((PROJECT / "configs").glob("*.yaml"))
HOW = [
    "cluster.num_cpus=3",
    "cluster.nodes.secrets=[HF_TOKEN]",
    "curate.resources.workers=2",
    "train.resources.num_workers=4",
    "jobs.on=slurm",
    "jobs.shapes.train={nodes: 3}",
    "caption.captioners={m: {engine: openai, model: m, resources: {urls: [http://a/v1]}}}",
]
WHAT = [
    "root=s3://b/other",
    "sources.0.uri=others",
    "curate.score.max_pixels=5000",
    "train.optimizer.epochs=9",
    "version=3",
    "caption.captioners={m: {engine: openai, model: other, resources: {urls: [http://a/v1]}}}",
]


def name(folder, *sets: str) -> str:
    return job_of(config(folder, list(sets)), PHASES).name


def test_how_it_is_run_changes_no_name_and_what_is_run_does(tmp_path):
    captioner = HOW[-1]
    for item in HOW[:-1]:
        assert name(tmp_path, item) == name(tmp_path), item
    moved = captioner.replace("http://a/v1", "http://b/v1")
    assert name(tmp_path, captioner) == name(tmp_path, moved) != name(tmp_path)
    names = [name(tmp_path), name(tmp_path, captioner), *(name(tmp_path, item) for item in WHAT)]
    assert len(set(names)) == len(names)


def test_each_choice_of_phases_has_a_name_that_kubernetes_takes(tmp_path):
    given = config(tmp_path)
    chosen = [PHASES, ("curate",), ("train",), ("curate", "caption", "tokenize"), ("caption", "tokenize", "train")]
    names = [job_of(given, phases).name for phases in chosen]
    assert len(set(names)) == len(names)
    assert max(len(f"{each}-99") for each in names) <= 47  # KubeRay's limit of a RayJob's name
    assert job_of(given, ("train", "curate")).phases == ("curate", "train"), "in the order of a run"


def test_attempts_are_told_apart_from_names(tmp_path):
    job = job_of(config(tmp_path), PHASES)
    assert [base_and_attempt(job.attempt(number)) for number in (1, 2, 10)] == [(job.name, n) for n in (1, 2, 10)]
    assert base_and_attempt("tokenmill-others") is None


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.name)
def test_the_config_that_goes_along_is_the_one_given(path):
    given = load(path, ["jobs.env={A: b}"])
    shipped = RunConfig.model_validate(yaml.safe_load(job_of(given, PHASES).config))
    assert shipped.model_copy(update={"root": given.root, "sources": given.sources}) == given
    assert job_of(shipped, PHASES) == job_of(given, PHASES)


@pytest.mark.parametrize(
    "item",
    [
        "sources.0.uri=https://user:pa55word@host/photos",
        "sources.0.uri=https://host/photos?X-Amz-Signature=0123456789abcdef",
        "sources.0.uri=photos-of-planted-value",
    ],
)
def test_a_secret_in_the_config_is_refused_and_not_shown(tmp_path, monkeypatch, item):
    monkeypatch.setenv("MY_API_KEY", "planted-value")
    with pytest.raises(ConfigError, match="holds a secret.*hidden") as caught:
        job_of(config(tmp_path, [item]), PHASES)
    assert not any(value in str(caught.value) for value in ("pa55word", "0123456789abcdef", "planted-value"))


def test_variables_that_sound_secret_are_refused(tmp_path):
    with pytest.raises(ConfigError, match=r"AWS_SECRET_ACCESS_KEY sounds like a secret: put its name into cluster"):
        config(tmp_path, ["jobs.env={AWS_SECRET_ACCESS_KEY: abc}"])
    assert config(tmp_path, ["jobs.env={TOKENIZERS_PARALLELISM: 'false', TOKENMILL_LOG: json}"])


def test_pods_get_no_path_of_this_machine(tmp_path):
    with pytest.raises(ConfigError, match=r"sources.0.uri: photos is relative.*jobs.kuberay.volumes"):
        jobs_of(config(tmp_path), PHASES, "kuberay")
    (job,) = jobs_of(config(tmp_path), PHASES, "ray")
    assert yaml.safe_load(job.config)["sources"][0]["uri"].startswith("/")


def test_shapes_part_the_jobs_of_slurm_and_the_workers_of_kubernetes():
    given = load(CLUSTER)
    rows = [job.phases for job in jobs_of(given, PHASES, "slurm")]
    assert rows == [("curate",), ("caption", "tokenize"), ("train",)]
    (whole,) = jobs_of(given, PHASES, "kuberay")
    assert list(whole.shapes) == rows
    assert whole.shapes[("train",)].gpus == 8


def test_mistakes_of_shapes_are_named(tmp_path):
    for item, said in (
        ("jobs.shapes.trian={}", "jobs.shapes.trian"),
        ("jobs.shapes.train={nodes: 2, min_nodes: 3}", "min_nodes 3 is more than nodes 2"),
        ("jobs.kuberay.schedule=daily", "cron's five fields"),
        ("jobs.slurm.time_limit=soon", "jobs.slurm.time_limit"),
        ("jobs.ray.address=host:8265", "jobs.ray.address"),
    ):
        with pytest.raises(ConfigError, match=said):
            config(tmp_path, [item])
    with pytest.raises(ConfigError, match="--phase trian: no such phase"):
        jobs_of(config(tmp_path), ("trian",), "ray")
