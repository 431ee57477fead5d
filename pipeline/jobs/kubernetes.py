"""Jobs at a Kubernetes API server with KubeRay's operator: applied, looked at and deleted as the manifests say.

Who may do so stands in the kubeconfig, or in the service account of the pod that this runs in.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, cast

from tokenmill.pipeline.jobs.job import Job
from tokenmill.pipeline.jobs.kuberay import PHASES, ROOT, manifests, text_of
from tokenmill.pipeline.jobs.states import JobError, Known, State
from tokenmill.pipeline.jobs_config import OnKubeRay

_GROUP, _VERSION = "ray.io", "v1"
_PLURALS = {"RayJob": "rayjobs", "RayCronJob": "raycronjobs"}
_SELECTOR = "app.kubernetes.io/name=tokenmill"
_CONFLICT, _GONE = 409, 404
_DEPLOYMENT: dict[str, State] = {"Complete": "succeeded", "Failed": "failed", "ValidationFailed": "failed"}
_JOB: dict[str, State] = {"SUCCEEDED": "succeeded", "FAILED": "failed", "STOPPED": "stopped", "RUNNING": "running"}


class KubeRayJobs:
    """RayJobs and RayCronJobs of a namespace."""

    def __init__(self, config: OnKubeRay):
        self._config, self._made = config, cast(Any, None)

    def text(self, job: Job) -> str:
        """The manifests, for `kubectl apply -f`."""
        return text_of(manifests(job, job.name))

    def submit(self, job: Job, name: str) -> str:
        """Create ConfigMap and job. The ConfigMap is the job's, and goes with it."""
        config_map, resource = manifests(job, name)
        with self._said():
            self._put_config(config_map, resource, self._custom("create", resource["kind"], body=resource))
        return f"{resource['kind']} {self._config.namespace}/{name}"

    def renew(self, job: Job, name: str) -> str:
        """Give a RayCronJob that stands what the config says now of its schedule, machines and image; its next job has
        them.
        """
        config_map, resource = manifests(job, name)
        with self._said():
            stands = self._custom("get", resource["kind"], name=name)
            version = stands["metadata"].get("resourceVersion")  # refused, should another change it meanwhile
            resource["metadata"] = dict(resource["metadata"]) | {"resourceVersion": version}
            self._put_config(config_map, resource, self._custom("replace", resource["kind"], name=name, body=resource))
        return f"{resource['kind']} {self._config.namespace}/{name}"

    def known(self) -> list[Known]:
        """Those that stand in the namespace."""
        with self._said():
            found = [
                _known(kind, item)
                for kind in _PLURALS
                for item in self._custom("list", kind, label_selector=_SELECTOR)["items"]
            ]
        return [each for _, each in sorted(found, key=lambda pair: pair[0])]

    def logs(self, name: str, follow: bool) -> Iterator[str]:
        """Of the pod that submits to the cluster's head, which repeats what the driver says."""
        with self._said():
            pods = self._core.list_namespaced_pod(self._config.namespace, label_selector=f"job-name={name}").items
            if not pods:
                raise JobError(f"{name}: no pod submits it yet, or it is gone; `tokenmill jobs status` tells its state")
            newest = max(pods, key=lambda pod: str(pod.metadata.creation_timestamp))
            response = self._core.read_namespaced_pod_log(
                newest.metadata.name, self._config.namespace, follow=follow, _preload_content=False
            )
            for chunk in response.stream(decode_content=True):
                yield chunk.decode(errors="replace")

    def stop(self, name: str) -> None:
        """Delete the job; its pods get SIGTERM and two minutes."""
        with self._said():
            kinds = [each.detail.split()[0] for each in self.known() if each.name == name]
            for kind in kinds:
                self._custom("delete", kind, name=name)

    def _put_config(self, config_map: dict[str, Any], resource: dict[str, Any], made: dict[str, Any]) -> None:
        about = dict(config_map["metadata"]) | {"ownerReferences": [_owner(resource, made)]}
        config_map = config_map | {"metadata": about}
        try:
            self._core.create_namespaced_config_map(self._config.namespace, config_map)
        except _api().client.ApiException as error:
            if error.status != _CONFLICT:
                raise
            self._core.replace_namespaced_config_map(about["name"], self._config.namespace, config_map)

    def _custom(self, verb: str, kind: str, **arguments: Any) -> Any:
        api = _api().client.CustomObjectsApi(self._client)
        call = getattr(api, f"{verb}_namespaced_custom_object")
        return call(_GROUP, _VERSION, self._config.namespace, _PLURALS[kind], **arguments)

    @property
    def _client(self) -> Any:
        """Of the cluster that the kubeconfig or the pod says."""
        if self._made is None:
            api = _api()
            try:
                if "KUBERNETES_SERVICE_HOST" in os.environ and "KUBECONFIG" not in os.environ:
                    settings = api.client.Configuration()
                    api.config.load_incluster_config(client_configuration=settings)
                    self._made = api.client.ApiClient(settings)
                else:
                    self._made = api.config.new_client_from_config(config_file=os.environ.get("KUBECONFIG"))
            except api.config.ConfigException as error:
                raise JobError(f"no Kubernetes cluster is configured: {error}; set KUBECONFIG") from None
        return self._made

    @property
    def _core(self) -> Any:
        return _api().client.CoreV1Api(self._client)

    @contextmanager
    def _said(self) -> Iterator[None]:
        """What the client raises -> JobError."""
        from urllib3.exceptions import HTTPError

        client = _api().client
        try:
            yield
        except client.ApiException as error:
            missing = (
                f"{error.reason}: is KubeRay's operator installed, and the namespace {self._config.namespace} there?"
            )
            what = missing if error.status == _GONE else f"{error.reason}: {' '.join(str(error.body).split())[:500]}"
            raise JobError(f"Kubernetes refuses ({error.status}): {what}") from error
        except HTTPError as error:
            raise JobError(f"no Kubernetes API server answers: {error}; check KUBECONFIG and the network") from error


def _api() -> Any:
    """The package `kubernetes`, whose import takes a second."""
    try:
        import kubernetes
    except ImportError:
        raise JobError("kubernetes is not installed: install tokenmill[cluster]") from None
    return kubernetes


def _owner(resource: dict[str, Any], made: dict[str, Any]) -> dict[str, Any]:
    about = made["metadata"]
    return {"apiVersion": resource["apiVersion"], "kind": resource["kind"], "name": about["name"], "uid": about["uid"]}


def _known(kind: str, item: dict[str, Any]) -> tuple[str, Known]:
    about, status = item["metadata"], item.get("status") or {}
    deployment, job = status.get("jobDeploymentStatus", ""), status.get("jobStatus", "")
    if kind == "RayCronJob":  # it stands until it is deleted
        state: State = "queued"
    else:
        state = _DEPLOYMENT.get(deployment) or _JOB.get(job) or "queued"
        state = "stopped" if job == "STOPPED" else state
    notes = about.get("annotations") or {}
    detail = " ".join(word for word in (kind, deployment, status.get("message", "")) if word)
    return about.get("creationTimestamp", ""), Known(
        about["name"], state, notes.get(ROOT, ""), notes.get(PHASES, ""), detail
    )
