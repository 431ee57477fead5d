"""Ray's Jobs API: what is asked of it, and a real cluster of two nodes that has only packages, not this code."""

import json
import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from job_configs import config
from ray_cluster import ray_cluster
from secrets_planted import PLANTED, found_in_text, found_under
from small_run import contents, write_config

from tokenmill import PHASES
from tokenmill.pipeline.config import load
from tokenmill.pipeline.jobs.code import put_code
from tokenmill.pipeline.jobs.job import job_of
from tokenmill.pipeline.jobs.states import JobError
from tokenmill.pipeline.jobs.submit import find, scheduler_of, submit

ROWS = ("curate", "caption", "tokenize")


def test_a_cluster_that_does_not_answer_is_said(tmp_path):
    given = config(tmp_path, ["jobs.ray.address=http://127.0.0.1:9"])
    with pytest.raises(JobError, match=r"no Ray cluster with a dashboard answers at http://127.0.0.1:9; start it"):
        list(submit(given, PHASES, "ray", again=False))


def test_the_config_s_address_stands_above_the_environment_s(tmp_path, monkeypatch):
    monkeypatch.setenv("RAY_ADDRESS", "http://elsewhere:1")
    given = config(tmp_path, ["jobs.ray.address=http://here:2/"])
    assert scheduler_of(given, "ray").text(job_of(given, PHASES)).startswith("# http://here:2/api/jobs/\n")
    assert scheduler_of(config(tmp_path), "ray").text(job_of(given, PHASES)).startswith("# http://elsewhere:1/api")


def test_the_code_that_is_shipped_runs_where_no_other_is_installed(tmp_path):
    put_code(tmp_path)
    code = "import tokenmill, tokenmill.storage.version as v; print(tokenmill.__file__, v.code_version(), sep='|')"
    isolated = [sys.executable, "-c", f"import sys; sys.path.insert(0, {str(tmp_path)!r}); {code}"]
    said = subprocess.run(isolated, capture_output=True, text=True, cwd="/").stdout.strip().split("|")
    here = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip().split("|")
    assert said[0] == str(tmp_path / "tokenmill" / "__init__.py")
    assert said[1] == here[1], "a wheel has the checkout's digest"


@pytest.mark.slow
def test_a_run_is_shipped_to_a_cluster_once_and_shows_no_secret(tmp_path, undisturbed_run):
    corpus, expected = undisturbed_run
    path = write_config(tmp_path, str(corpus), str(tmp_path / "root"))
    document = yaml.safe_load(path.read_text())
    del document["cluster"]["num_cpus"]
    document["cluster"]["nodes"] = {"secrets": list(PLANTED)}
    with ray_cluster(PLANTED) as (dashboard, gcs, folder):
        document["jobs"] = {"on": "ray", "ray": {"address": dashboard}}
        path.write_text(yaml.safe_dump(document))
        given = load(path)
        ((one),) = submit(given, ROWS, None, again=False)
        ((two),) = submit(given, ROWS, None, again=False)
        assert two.name == one.name
        assert "already" in two.said

        def jobs(*words: str) -> str:
            command = [sys.executable, "-m", "tokenmill", "jobs", words[0], str(path), *words[1:]]
            return subprocess.run(command, capture_output=True, text=True, timeout=900).stdout

        log = jobs("logs", "-f")
        assert json.loads(jobs("status", "--json"))[0]["state"] == "succeeded", log[-4000:]
        assert contents(given.root, str(corpus)) == expected
        ((three),) = submit(given, ROWS, None, again=False)
        assert three.said.startswith("has succeeded: nothing was submitted")
        scheduler = scheduler_of(given, None)
        known = [str(details) for details in scheduler._client.list_jobs()]
        texts = {"job info": "\n".join(known), "log": log, "list": jobs("list")}
        texts["dry run"] = scheduler.text(job_of(given, ROWS))
        assert [name for name, text in texts.items() if found_in_text(text)] == []
        assert found_under(Path(given.root)) == found_under(folder) == []

        # What a node lacks, and code that is another's, are said before any work.
        lacking = load(path, ["cluster.nodes.secrets=[NOT_SET_ANYWHERE]", "root=" + str(tmp_path / "other")])
        ((four),) = submit(lacking, ROWS, None, again=False)
        assert "lacks NOT_SET_ANYWHERE of cluster.nodes.secrets" in "".join(scheduler.logs(four.name, follow=True))
        assert find(lacking, scheduler, four.name).state == "failed"
        ((five),) = submit(lacking, ROWS, None, again=False)
        assert five.name == f"{four.name}-2"
        scheduler.stop(five.name)
        if os.getuid():  # the rest needs a file system of its own
            return
        done = run_of_another_release(tmp_path, path, gcs)
        assert done.returncode == 1, done.stdout[-2000:]
        assert "has tokenmill 0.1.0 (code" in done.stderr
        assert "this process 0.1.0 (code" in done.stderr
        assert "put the same version on both" in done.stderr


def run_of_another_release(folder: Path, config: Path, gcs: str) -> subprocess.CompletedProcess:
    """A driver with code that no node sees: it stands in a file system of the driver's own."""
    hidden, other = folder / "hidden", folder / "other-code"
    hidden.mkdir()
    put_code(other)
    with (other / "tokenmill" / "pipeline" / "phases.py").open("a") as file:
        file.write("\n")
    call = "import runpy, sys; sys.path.insert(0, sys.argv.pop(1)); runpy.run_module('tokenmill', run_name='__main__')"
    run = [sys.executable, "-c", call, hidden, "run", config, "--phase=curate", f"--set=cluster.address={gcs}"]
    words = shlex.join([*map(str, run), "--set=cluster.nodes.secrets=[]", f"--set=root={folder / 'unused'}"])
    script = f"mount -t tmpfs none {hidden} && cp -a {other}/. {hidden} && exec {words}"
    command = ["unshare", "--mount", "bash", "-c", script]
    return subprocess.run(command, capture_output=True, text=True, timeout=300, cwd=folder)
