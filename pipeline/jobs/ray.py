"""Jobs on a Ray cluster that is up, by its Jobs API. Code and config go along as the job's working folder.

Nothing secret goes along: metadata and runtime environment can be read by whoever sees the dashboard.
"""

import asyncio
import json
import logging
import os
import shlex
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, cast

from tokenmill import __version__
from tokenmill.pipeline.jobs.code import put_code
from tokenmill.pipeline.jobs.job import PREFIX, Job
from tokenmill.pipeline.jobs.states import JobError, Known, State
from tokenmill.pipeline.jobs_config import OnRay

_CONFIG = "config.yaml"
_DEFAULT_ADDRESS = "http://127.0.0.1:8265"
_ADDRESS = "RAY_API_SERVER_ADDRESS"  # stands above what a client is told
_STOP_S = 120  # Ray's own 3 s leave no time to commit, or for a checkpoint
_STATES: dict[str, State] = {
    "PENDING": "queued",
    "RUNNING": "running",
    "SUCCEEDED": "succeeded",
    "FAILED": "failed",
    "STOPPED": "stopped",
}


class RayJobs:
    """The Jobs API of the cluster at `jobs.ray.address`."""

    def __init__(self, config: OnRay):
        self._config, self._made = config, cast(Any, None)

    def text(self, job: Job) -> str:
        """The request, and the files of its working folder."""
        code = f"# beside it: the code of tokenmill {__version__}\n" if self._config.code == "shipped" else ""
        request = json.dumps(self._request(job, job.name), indent=2)
        return f"# {self._address()}/api/jobs/\n{request}\n# {_CONFIG} in the working folder:\n{job.config}{code}"

    def submit(self, job: Job, name: str) -> str:
        """Upload code and config, start the job."""
        with TemporaryDirectory() as there, _said(self._address()):
            self._check_version()
            folder = Path(there)
            if self._config.code == "shipped":
                put_code(folder)
            (folder / _CONFIG).write_text(job.config)
            request = self._request(job, name)
            request["runtime_env"] |= {"working_dir": str(folder)}
            return self._client.submit_job(**request)

    def known(self) -> list[Known]:
        """Those that the cluster has seen since its start."""
        with _said(self._address()):
            details = self._client.list_jobs()
        of_ours = [each for each in details if (each.submission_id or "").startswith(PREFIX)]
        return [_known(each) for each in sorted(of_ours, key=lambda each: each.start_time or 0)]

    def logs(self, name: str, follow: bool) -> Iterator[str]:
        """Of the driver; those of workers are in Ray's dashboard."""
        with _said(self._address()):
            if not follow:
                yield self._client.get_job_logs(name)
                return
            loop = asyncio.new_event_loop()
            try:
                tail: AsyncIterator[str] = self._client.tail_job_logs(name)
                while True:
                    try:
                        yield loop.run_until_complete(anext(tail))
                    except StopAsyncIteration:
                        return
            finally:
                loop.close()

    def stop(self, name: str) -> None:
        """SIGTERM to the driver, which has two minutes."""
        with _said(self._address()):
            self._client.stop_job(name)

    def _request(self, job: Job, name: str) -> dict[str, Any]:
        words = ["python", "-m", "tokenmill", *job.command(_CONFIG, "cluster.address=auto")]
        return {
            "entrypoint": shlex.join(words),
            "submission_id": name,
            "entrypoint_num_cpus": self._config.driver_cpus,
            "metadata": {"tokenmill": __version__, "root": job.root, "phases": " ".join(job.phases)},
            "runtime_env": {"env_vars": {"RAY_JOB_STOP_WAIT_TIME_S": str(_STOP_S), **job.jobs.env}},
        }

    def _address(self) -> str:
        found = self._config.address or os.environ.get(_ADDRESS) or os.environ.get("RAY_ADDRESS") or _DEFAULT_ADDRESS
        return found.rstrip("/")

    def _check_version(self) -> None:
        import ray

        there = self._client._do_request("GET", "/api/version").json()["ray_version"]
        if there != ray.__version__:
            raise JobError(
                f"jobs.ray.address: {self._address()} runs Ray {there}, this process Ray {ray.__version__}; install "
                "the same version here and there"
            )

    @property
    def _client(self) -> Any:
        if self._made is None:
            from ray.job_submission import JobSubmissionClient

            for module in ("ray.dashboard.modules.dashboard_sdk", "ray.dashboard.modules.job.sdk"):
                logging.getLogger(module).setLevel(logging.ERROR)
            logging.getLogger("ray._private.runtime_env.packaging").setLevel(logging.ERROR)
            before = os.environ.get(_ADDRESS)
            os.environ[_ADDRESS] = self._address()
            try:
                self._made = JobSubmissionClient()
            finally:
                os.environ.pop(_ADDRESS)
                if before is not None:
                    os.environ[_ADDRESS] = before
        return self._made


def _known(details: Any) -> Known:
    metadata = details.metadata or {}
    said = " ".join((details.message or "").split())[:300]
    state = _STATES.get(str(getattr(details.status, "value", details.status)), "failed")
    return Known(details.submission_id, state, metadata.get("root", ""), metadata.get("phases", ""), said)


@contextmanager
def _said(address: str) -> Iterator[None]:
    """What the client raises -> JobError."""
    try:
        yield
    except ConnectionError as error:
        raise JobError(
            f"jobs.ray.address: no Ray cluster with a dashboard answers at {address}; start it (`ray start --head` "
            "with ray[default] installed), or correct the address"
        ) from error
    except (RuntimeError, ValueError) as error:
        text = " ".join(str(error).split())
        what = "install tokenmill[cluster]" if "ray[default]" in text else "correct that, then run the command again"
        raise JobError(f"{address}: Ray refuses: {text[:500]}; {what}") from error
