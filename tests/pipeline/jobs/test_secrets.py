"""No value of a secret stands in anything that a submission makes or shows; names of variables do."""

import subprocess
import sys
from pathlib import Path

import pytest
from api_server import running
from job_configs import CLUSTER, KUBERAY, config
from secrets_planted import PLANTED, found_in_text, found_under

from tokenmill import PHASES
from tokenmill.pipeline.jobs import slurm as slurm_module
from tokenmill.pipeline.jobs.states import JobError
from tokenmill.pipeline.jobs.submit import dry_run, submit

NAMED = [f"cluster.nodes.secrets=[{', '.join(PLANTED)}]", "jobs.kuberay.secret=keys", "jobs.kuberay.redis=redis:6379"]


@pytest.fixture(autouse=True)
def planted(monkeypatch) -> None:
    for name, value in PLANTED.items():
        monkeypatch.setenv(name, value)


@pytest.mark.parametrize("on", ["ray", "kuberay", "slurm"])
@pytest.mark.parametrize("more", [[], ["jobs.kuberay.schedule=0 3 * * *"]], ids=["once", "scheduled"])
def test_what_would_be_submitted_holds_names_alone(on, more, tmp_path):
    text = dry_run(config(tmp_path, [*KUBERAY, *NAMED, f"jobs.slurm.folder={tmp_path}", *more]), PHASES, on)
    assert found_in_text(text) == []
    assert all(name in text for name in PLANTED)


@pytest.mark.parametrize("on", ["ray", "kuberay", "slurm"])
def test_a_process_prints_no_value(on):
    command = [sys.executable, "-m", "tokenmill", "submit", str(CLUSTER), "--on", on, "--dry-run"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert (done.returncode, found_in_text(done.stdout + done.stderr)) == (0, [])


def test_objects_at_an_api_server_hold_references(tmp_path, monkeypatch):
    with running(tmp_path) as (api, kubeconfig):
        monkeypatch.setenv("KUBECONFIG", str(kubeconfig))
        list(submit(config(tmp_path, KUBERAY + NAMED), PHASES, "kuberay", again=False))
        assert len(api.kept) == 2
        assert found_in_text(str(api.kept)) == []
        assert str(api.kept).count("'secretKeyRef': {'name': 'keys', 'key': 'HF_TOKEN'}") == 2  # head and workers


def test_files_for_slurm_hold_names_and_what_is_not_set_is_said(tmp_path, monkeypatch):
    called = []
    monkeypatch.setattr(slurm_module, "_call", lambda *words: called.append(words) or "")
    given = config(tmp_path, NAMED)
    list(submit(given, PHASES, "slurm", again=False))
    files = sorted(path.suffix for path in (Path(given.root) / "runs" / "jobs").iterdir())
    assert files == [".sbatch", ".yaml"]
    assert found_under(tmp_path) == found_in_text(str(called)) == []
    monkeypatch.delenv("HF_TOKEN")
    with pytest.raises(JobError, match="cluster.nodes.secrets: HF_TOKEN: not set here"):
        list(submit(given, ("train",), "slurm", again=False))


def test_the_search_finds_what_is_there(tmp_path):
    (tmp_path / "log").write_text(f"key {PLANTED['HF_TOKEN']}")
    assert found_under(tmp_path) == [str(tmp_path / "log")]
    assert found_in_text(f"a {PLANTED['OPENAI_API_KEY']}") == ["OPENAI_API_KEY"]
