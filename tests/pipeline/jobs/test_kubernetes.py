"""The `kubernetes` client creates, finds and deletes jobs at an API server that refuses what is unknown."""

import pytest
from api_server import ApiServer, running
from job_configs import KUBERAY, config

from tokenmill import PHASES
from tokenmill.pipeline.jobs.states import JobError
from tokenmill.pipeline.jobs.submit import find, scheduler_of, submit


@pytest.fixture
def api(tmp_path, monkeypatch) -> ApiServer:
    with running(tmp_path) as (server, kubeconfig):
        monkeypatch.setenv("KUBECONFIG", str(kubeconfig))
        yield server


def status(api: ApiServer, name: str, **status: str) -> None:
    api.kept["default", "rayjobs", name]["status"] = status


def test_the_same_work_is_submitted_once_and_again_when_it_failed(api, tmp_path):
    given = config(tmp_path, KUBERAY)

    def submitted(again: bool = False) -> tuple[str, str]:
        (one,) = submit(given, PHASES, "kuberay", again)
        return one.name, one.said

    first, said = submitted()
    assert said == f"submitted as RayJob default/{first}"
    job, configs = api.kept["default", "rayjobs", first], api.kept["default", "configmaps", first]
    assert configs["metadata"]["ownerReferences"][0]["uid"] == job["metadata"]["uid"]
    assert submitted() == (first, "is queued already (RayJob): nothing was submitted")
    status(api, first, jobStatus="RUNNING", jobDeploymentStatus="Running")
    assert submitted() == (first, "is running already (RayJob Running): nothing was submitted")
    status(api, first, jobStatus="FAILED", jobDeploymentStatus="Failed", message="no such bucket")
    second, said = submitted()
    assert second == f"{first}-2"
    assert said == f"submitted as RayJob default/{second}, for {first} has failed"
    status(api, second, jobStatus="SUCCEEDED", jobDeploymentStatus="Complete")
    assert submitted()[1].startswith("has succeeded: nothing was submitted; --again")
    assert submitted(again=True)[0] == f"{first}-3"
    assert [each.state for each in scheduler_of(given, "kuberay").known()] == ["failed", "succeeded", "queued"]


def test_a_job_is_found_heard_and_stopped(api, tmp_path):
    given = config(tmp_path, KUBERAY)
    scheduler = scheduler_of(given, "kuberay")
    with pytest.raises(JobError, match=r"no job of root s3://b/root is known there"):
        find(given, scheduler, None)
    (one,) = submit(given, ("curate",), "kuberay", again=False)
    found = find(given, scheduler, None)
    assert (found.name, found.state, found.root, found.phases) == (one.name, "queued", "s3://b/root", "curate")
    with pytest.raises(JobError, match="no pod submits it yet"):
        next(scheduler.logs(one.name, follow=False))
    about = {"name": "pod", "labels": {"job-name": one.name}, "creationTimestamp": None}
    api.kept["default", "pods", "pod"] = {"metadata": about}
    assert "".join(scheduler.logs(one.name, follow=True)) == api.log
    scheduler.stop(one.name)
    assert not any(kind == "rayjobs" for _, kind, _ in api.kept)


def test_a_schedule_is_a_cron_job_that_stands_once(api, tmp_path):
    given = config(tmp_path, [*KUBERAY, "jobs.kuberay.schedule=0 3 * * *"])
    (one,) = submit(given, PHASES, "kuberay", again=False)
    assert api.kept["default", "raycronjobs", one.name]["spec"]["schedule"] == "0 3 * * *"
    first = api.kept["default", "raycronjobs", one.name]
    later = config(tmp_path, [*KUBERAY, "jobs.kuberay.schedule=0 4 * * *", "jobs.kuberay.image=other:2"])
    (two,) = submit(later, PHASES, "kuberay", again=False)
    assert two.said.startswith(f"stands already: RayCronJob default/{one.name} has the schedule, machines and image")
    stands = api.kept["default", "raycronjobs", one.name]
    assert stands["spec"]["schedule"] == "0 4 * * *" and "other:2" in str(stands) and "other:2" not in str(first)
    assert stands["metadata"]["resourceVersion"] == first["metadata"]["resourceVersion"]
    owner = api.kept["default", "configmaps", one.name]["metadata"]["ownerReferences"][0]
    assert owner["uid"] == stands["metadata"]["uid"] and len(api.kept) == 2
    other = config(tmp_path, [*KUBERAY, "jobs.kuberay.schedule=0 4 * * *", "curate.duplicates.near_radius=3"])
    with pytest.raises(JobError, match=f"{one.name} refreshes s3://b/root already, by another config"):
        list(submit(other, PHASES, "kuberay", again=False))
    scheduler_of(other, "kuberay").stop(one.name)
    (three,) = submit(other, PHASES, "kuberay", again=False)
    assert three.said == f"submitted as RayCronJob default/{three.name}" and three.name != one.name


def test_an_api_server_that_is_not_there_is_said(tmp_path, monkeypatch):
    given = config(tmp_path, KUBERAY)
    monkeypatch.setenv("KUBECONFIG", str(tmp_path / "none"))
    with pytest.raises(JobError, match="no Kubernetes cluster is configured.*set KUBECONFIG"):
        list(submit(given, PHASES, "kuberay", again=False))
    with running(tmp_path) as (_, kubeconfig):
        monkeypatch.setenv("KUBECONFIG", str(kubeconfig))
    with pytest.raises(JobError, match="no Kubernetes API server answers"):
        list(submit(given, PHASES, "kuberay", again=False))
