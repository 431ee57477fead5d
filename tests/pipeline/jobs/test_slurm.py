"""A real Slurm: the same work is submitted once; nodes die, the time limit comes, jobs are stopped, and the tables are
those of an undisturbed run.
"""

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from itertools import groupby
from pathlib import Path

import ceph
import pytest
import yaml
from disturbances import line
from rich.console import Console
from secrets_planted import PLANTED, found_in_text, found_under
from slurm_cluster import Slurm, slurm, wait_for
from small_run import contents, make_corpus, num_commits, write_config

import tokenmill
from tokenmill import storage
from tokenmill.pipeline.config import RunConfig, load
from tokenmill.pipeline.demo.scenes import write_corpus
from tokenmill.pipeline.jobs.states import JobError, Known
from tokenmill.pipeline.jobs.submit import find, scheduler_of, submit
from tokenmill.pipeline.run.runner import run_phases
from tokenmill.storage import object_store
from tokenmill.storage.run_log import read_log
from tokenmill.training.checkpoints.folders import complete_steps
from tokenmill.training.job import read_result

ROWS = ("curate", "caption", "tokenize")
TRAIN = (*ROWS, "train")
NEAR = "the time limit or a preemption is near; to be continued in the queue"
CORPUS, EPOCHS = "s3://shared/corpus", 20
WAIT_S = 400  # a busy machine of two cores starts Ray on two nodes


@pytest.fixture
def cluster() -> Iterator[Slurm]:
    with slurm(2) as found:
        yield found


def small_corpus(folder: Path) -> Path:
    write_corpus(folder, num_images=24, num_videos=1)
    return folder


def given(cluster: Slurm, corpus: Path, **jobs: object) -> tuple[Path, RunConfig]:
    path = write_config(cluster.folder, str(corpus), str(cluster.folder / "root"))
    document = yaml.safe_load(path.read_text())
    del document["cluster"]["num_cpus"]
    document["jobs"] = {"on": "slurm", "shapes": {"default": {"nodes": 2}}, **jobs}
    path.write_text(yaml.safe_dump(document))
    return path, load(path)


def training(cluster: Slurm, corpus: str, root: str, epochs: int, every_steps: int) -> RunConfig:
    """The whole line on both nodes, with a training of two workers, or of one where there is one node."""
    path = cluster.folder / "config.yaml"
    line.write_config(path, corpus, root, epochs, every_steps)
    document = yaml.safe_load(path.read_text())
    document["jobs"] = {"on": "slurm", "shapes": {"default": {"nodes": 2}}}
    document["train"]["resources"]["min_workers"] = 1
    path.write_text(yaml.safe_dump(document))
    return load(path)


def here(cluster: Slurm) -> tuple[str, str]:
    """A corpus, and where a root may stand."""
    return str(small_corpus(cluster.folder / "corpus")), str(cluster.folder / "root")


def lose(cluster: Slurm, node: int) -> None:
    """It is back before Slurm gives it up."""
    cluster.kill(node)
    time.sleep(3)
    cluster.boot(node)


def wait_for_step(config: RunConfig, step: int) -> None:
    at = (TRAIN.index("train"), step)
    wait_for(lambda: line.position(Path(config.root)) >= at or is_over(config), WAIT_S)
    assert not is_over(config), log(config)[-6000:]


def check_training(config: RunConfig) -> None:
    """Each step once, with the documents that the plan has there, and a model that draws."""
    assert not line.wrong_in_log(config)
    (picture,) = tokenmill.sample(config, ["a red circle"])
    assert picture.shape == (64, 64, 3)


def submitted(config: RunConfig, phases: tuple[str, ...] = ROWS) -> tuple[str, str]:
    ((one),) = submit(config, phases, None, again=False)
    return one.name, one.said


def state(config: RunConfig) -> Known:
    return find(config, scheduler_of(config, None), None)


def log(config: RunConfig) -> str:
    name = state(config).name
    folder = Path(config.jobs.slurm.folder or f"{config.root}/runs/jobs")
    return "\n".join(path.read_text() for path in sorted(folder.glob(f"{name}*.log")))


def is_over(config: RunConfig) -> bool:
    return state(config).state not in ("queued", "running")


def queue(column: str) -> str:
    command = ["squeue", "--noheader", f"--format={column}"]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def end(config: RunConfig) -> None:
    wait_for(lambda: is_over(config), WAIT_S)
    assert state(config).state == "succeeded", f"{state(config)}\n{log(config)[-6000:]}"


@pytest.mark.service
def test_a_run_on_two_nodes_is_submitted_once_and_is_that_of_one_machine(cluster):
    corpus = small_corpus(cluster.folder / "corpus")
    path, config = given(cluster, corpus)
    with pytest.raises(JobError, match="no job of root"):
        state(config)
    name, said = submitted(config)
    assert said == "submitted as Slurm job 1"
    assert submitted(config)[1].startswith(f"is {state(config).state} already (1 ")
    command = [sys.executable, "-m", "tokenmill", "jobs", "logs", str(path), "-f"]
    followed = subprocess.run(command, capture_output=True, text=True, timeout=WAIT_S).stdout
    end(config)
    assert followed in log(config)
    assert "files = " in followed
    assert submitted(config) == (name, "has succeeded: nothing was submitted; --again runs it again, as a refresh")
    here = load(path, [f"root={cluster.folder / 'here'}", "cluster.local_rows=1000"])
    run_phases(here, ROWS, "run", Console(quiet=True))
    found, expected = contents(config.root, str(corpus)), contents(here.root, str(corpus))
    for table, rows in expected.items():  # a whole table says nothing
        for one, other in zip(found[table], rows, strict=True):
            assert one == other, (table, [(key, one[key], other[key]) for key in one if one[key] != other[key]])
    assert not any(step.num_read for step in run_phases(config, ROWS, "run", Console(quiet=True), plan_only=True).steps)


@pytest.mark.slow
@pytest.mark.cluster
def test_nodes_die_in_each_phase_and_the_tables_are_those_of_an_undisturbed_run(cluster, undisturbed_run):
    """The end of the second node leaves the job at work on the first, whose end starts it again."""
    source, expected = undisturbed_run
    corpus = cluster.folder / "corpus"
    subprocess.run(["cp", "-a", source, corpus], check=True)
    _, config = given(cluster, corpus)
    name, _ = submitted(config)
    for table, node in (("media", 2), ("captions", 1), ("tokens", 2)):
        wait_for(lambda table=table: num_commits(config.root, table) > 2 or is_over(config), WAIT_S)
        assert not is_over(config), log(config)[-6000:]
        lose(cluster, node)
        if node == 1:
            wait_for(lambda: "BeginTime" in queue("%r"), WAIT_S)
            cluster.begin_now("1")
    end(config)
    assert contents(config.root, str(corpus)) == expected
    assert [line.split(",")[-2] for line in log(config).splitlines() if " job 1 on " in line] == [
        " start 0",
        " start 1",
    ]
    assert submitted(config)[0] == name


@pytest.mark.slow
@pytest.mark.cluster
def test_a_stopped_job_has_a_successor_that_goes_on(cluster, undisturbed_run):
    source, expected = undisturbed_run
    corpus = cluster.folder / "corpus"
    subprocess.run(["cp", "-a", source, corpus], check=True)
    _, config = given(cluster, corpus)
    first, _ = submitted(config)
    wait_for(lambda: num_commits(config.root, "media") > 2, WAIT_S)
    scheduler_of(config, None).stop(first)
    wait_for(lambda: state(config).state == "stopped", 60)
    second, said = submitted(config)
    assert (second, said) == (f"{first}-2", f"submitted as Slurm job 2, for {first} was stopped")
    end(config)
    assert contents(config.root, str(corpus)) == expected
    assert queue("%i") == ""


@pytest.mark.slow
@pytest.mark.cluster
def test_the_time_limit_puts_a_run_into_the_queue_again(cluster, undisturbed_run):
    """Slurm warns the script, the run commits and ends, and goes on at its next start."""
    source, expected = undisturbed_run
    corpus = cluster.folder / "corpus"
    subprocess.run(["cp", "-a", source, corpus], check=True)
    _, config = given(cluster, corpus)
    submitted(config)
    wait_for(lambda: num_commits(config.root, "media") > 2, WAIT_S)
    subprocess.run(["scancel", "--batch", "--signal=USR1", "1"], check=True)  # as Slurm does before the limit
    wait_for(lambda: "BeginTime" in queue("%r"), 120)
    assert NEAR in log(config)
    cluster.begin_now("1")
    end(config)
    assert contents(config.root, str(corpus)) == expected


@pytest.mark.slow
@pytest.mark.cluster
def test_nodes_die_in_a_training_and_it_is_gone_on_with(cluster):
    """The second node comes back and is at work again; the end of the first one starts the job again."""
    config = training(cluster, *here(cluster), epochs=200, every_steps=50)
    submitted(config, TRAIN)
    wait_for_step(config, 60)
    lose(cluster, 2)
    wait_for(lambda: numbers_of_workers(config) == [2, 1, 2] or is_over(config), WAIT_S)
    assert not is_over(config), log(config)[-6000:]
    lose(cluster, 1)
    wait_for(lambda: "BeginTime" in queue("%r"), WAIT_S)
    cluster.begin_now("1")
    end(config)
    assert read_result(line.log_of(config)[0]).resumed_from >= 100
    check_training(config)


def numbers_of_workers(config: RunConfig) -> list[int]:
    """Of a training, one after the other."""
    return [number for number, _ in groupby(record["workers"] for record in line.log_of(config)[1])]


@pytest.mark.slow
@pytest.mark.cluster
def test_a_node_that_comes_back_is_in_ray_again_until_slurm_gives_it_up(cluster):
    """It does so after SlurmdTimeout, 15 s here, and some more. What the job runs only waits."""
    _, config = given(cluster, small_corpus(cluster.folder / "corpus"), slurm={"environment": str(cluster.folder)})
    programs = cluster.folder / "bin"
    programs.mkdir()
    for name in ("ray", "python"):
        (programs / name).symlink_to(Path(sys.executable).parent / name)
    (programs / "tokenmill").write_text(f"#!/bin/bash\nuntil [ -e {cluster.folder}/enough ]; do sleep 1; done\n")
    (programs / "tokenmill").chmod(0o755)
    submitted(config)
    for _ in range(2):
        wait_for(lambda: has_raylet(cluster, 2) or is_over(config), WAIT_S)
        assert not is_over(config), log(config)[-6000:]
        if " node2 is back: its Ray is begun again\n" not in log(config):
            lose(cluster, 2)
    cluster.kill(2)
    wait_for(lambda: " node2: Slurm has taken it out of the job, which goes on without it\n" in log(config), 120)
    assert queue("%N") == "node1\n"
    (cluster.folder / "enough").touch()
    end(config)


def has_raylet(cluster: Slurm, node: int) -> bool:
    return any("/raylet/raylet " in command for command in cluster.commands(node))


@pytest.mark.slow
@pytest.mark.cluster
def test_nodes_that_share_no_disk_die_and_it_is_the_line_of_one_machine(cluster, tmp_path, monkeypatch):
    """Each has a /tmp, and in it a HOME, of its own; the corpus and the root are in Ceph, under planted keys."""
    if missing := ceph.missing():
        pytest.skip(f"not installed: {', '.join(missing)}; apt-get install --no-install-recommends {ceph.PACKAGES}")
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(name)
    for name, value in PLANTED.items():
        monkeypatch.setenv(name, value)
    corpus, one, jobs = make_corpus(tmp_path / "corpus"), tmp_path / "one", cluster.folder / "jobs"
    line.write_config(tmp_path / "one.yaml", corpus, one, EPOCHS, 50, local_rows=1000)
    run_phases(load(tmp_path / "one.yaml"), ROWS, "run", Console(quiet=True))
    users = {PLANTED["AWS_ACCESS_KEY_ID"]: PLANTED["AWS_SECRET_ACCESS_KEY"]}
    with ceph.gateway(tmp_path / "store", users, cluster.address) as endpoint:
        monkeypatch.setenv("AWS_ENDPOINT_URL", endpoint)
        object_store.client().create_bucket(Bucket="shared")
        storage.upload_folder(corpus, CORPUS)
        config = in_store(tmp_path, jobs, endpoint)
        with monkeypatch.context() as submitting:
            submitting.setenv("HOME", "/tmp/home")
            submitted(config, TRAIN)
        for is_reached, node in (
            (lambda: num_commits(config.root, "tokens") > 2, 2),
            (lambda: num_logged(config) > 60, 1),
        ):
            wait_for(lambda is_reached=is_reached: is_reached() or is_over(config), WAIT_S)
            assert not is_over(config), log(config)[-6000:]
            lose(cluster, node)
        wait_for(lambda: "BeginTime" in queue("%r"), WAIT_S)
        cluster.begin_now("1")
        end(config)
        found = contents(config.root, CORPUS)
        assert found == contents(str(one), str(corpus))
        losses, expected = losses_there_and_here(config, tmp_path)
        assert losses == expected
    assert {path.name for path in cluster.folder.iterdir()} == {"slurm", "jobs"}, "what nodes share"
    assert found_under(jobs) == found_under(tmp_path / "again") == found_in_text(str(found)) == []


def in_store(folder: Path, jobs: Path, endpoint: str) -> RunConfig:
    """The whole line on two nodes, with a training of two workers."""
    path = folder / "config.yaml"
    line.write_config(path, CORPUS, "s3://shared/root", EPOCHS, 50, nodes={"secrets": list(PLANTED)})
    document = yaml.safe_load(path.read_text())
    document["jobs"] = {"on": "slurm", "shapes": {"default": {"nodes": 2}}, "slurm": {"folder": str(jobs)}}
    document["jobs"]["env"] = {"AWS_ENDPOINT_URL": endpoint}
    path.write_text(yaml.safe_dump(document))
    return load(path)


def num_logged(config: RunConfig) -> int:
    """Steps of all trainings."""
    folder = storage.join(config.root, "training")
    return sum(len(read_log(storage.join(folder, name))) for name in storage.list_names(folder))


def losses_there_and_here(config: RunConfig, folder: Path) -> tuple[list[float], list[float]]:
    """Of each step of a training, and of one of the same shards by as many workers on this machine."""
    path, root = folder / "again.yaml", folder / "again"
    with storage.local_folder(config.root) as copy:
        shutil.copytree(copy, root)
    job, log = line.log_of(config)
    assert not line.wrong_in_log(config)
    assert {record["workers"] for record in log} == {2}
    shutil.rmtree(root / "training")
    line.write_config(path, CORPUS, root, EPOCHS, 50)
    pinned = ["--set", f"version={job.tokens_version}"]
    command = [sys.executable, "-m", "tokenmill", "train", str(path), *pinned]
    done = subprocess.run(command, capture_output=True, text=True, timeout=WAIT_S)
    assert done.returncode == 0, (done.stdout + done.stderr)[-4000:]
    here = line.log_of(load(path, pinned[1:]))[1]
    return [record["loss"] for record in log], [record["loss"] for record in here]


@pytest.mark.slow
@pytest.mark.cluster
def test_a_training_that_is_preempted_writes_a_checkpoint_and_goes_on_from_it(cluster):
    """By a job of a partition of more priority: Slurm tells the steps alone, and 60 s later ends what is left."""
    cluster.let_preempt(grace_s=60)
    config = training(cluster, *here(cluster), epochs=60, every_steps=10_000)
    submitted(config, TRAIN)
    wait_for_step(config, 60)
    urgent = ["sbatch", "--partition=urgent", "--nodes=1", "--exclusive", "--output=/dev/null", "--wrap=sleep 5"]
    subprocess.run(urgent, check=True, timeout=60)
    uri = line.log_of(config)[0].run_uri
    wait_for(lambda: NEAR in log(config), 30)
    wait_for(lambda: complete_steps(uri), 30)
    (saved,) = complete_steps(uri)
    wait_for(lambda: "PENDING" in queue("%T") and "urgent" not in queue("%P"), 90)
    assert saved < len(line.log_of(config)[1]) + 1 < 400, "it did not run to its end"
    cluster.begin_now("1")
    end(config)
    assert read_result(line.log_of(config)[0]).resumed_from == saved
    check_training(config)
