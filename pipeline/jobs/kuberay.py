"""A job -> manifests for Kubernetes with KubeRay: a ConfigMap with the config, and a RayJob or RayCronJob.

Head and workers are pods of one image. The head takes no work but the driver's; each shape is a group of workers,
which the autoscaler keeps between `min_nodes` and `nodes`. Secrets are references to keys of one Secret.
"""

import shlex
from importlib import metadata
from typing import Any

import yaml

from tokenmill.pipeline.config import ConfigError
from tokenmill.pipeline.jobs.job import Job
from tokenmill.pipeline.jobs_config import OnKubeRay, Shape

Manifest = dict[str, Any]
LABEL = {"app.kubernetes.io/name": "tokenmill"}
ROOT, PHASES = "tokenmill/root", "tokenmill/phases"  # annotations
_FOLDER = "/etc/tokenmill"
_CPUS, _MEMORY_GB = 8, 32
_GRACE_S = 120  # between SIGTERM and the end of a pod: time to commit, or for a checkpoint
_REDIS_PASSWORD = "REDIS_PASSWORD"


def manifests(job: Job, name: str) -> list[Manifest]:
    """ConfigMap and job, in the order to apply them. Raises ConfigError for what is needed and not there."""
    config = job.jobs.kuberay
    if config.image is None:
        raise ConfigError("jobs.kuberay.image: missing; add an image with tokenmill, such as deploy/Dockerfile makes")
    if job.secrets and config.secret is None:
        raise ConfigError("jobs.kuberay.secret: missing; name the Secret that holds the keys in cluster.nodes.secrets")
    about = {
        "name": name,
        "namespace": config.namespace,
        "labels": dict(LABEL),
        "annotations": {ROOT: job.root, PHASES: " ".join(job.phases)},
    }
    config_map = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": about, "data": {"config.yaml": job.config}}
    spec = _spec(job, name)
    queue = {"kueue.x-k8s.io/queue-name": config.queue} if config.queue else {}
    if config.schedule is None:
        own = about | {"labels": LABEL | queue}
        return [config_map, {"apiVersion": "ray.io/v1", "kind": "RayJob", "metadata": own, "spec": spec}]
    if queue:
        raise ConfigError(
            "jobs.kuberay.queue: a RayCronJob gives its jobs no label of a queue; leave queue or schedule out"
        )
    spec.pop("jobId")  # each time another one
    cron = {"schedule": config.schedule, "jobTemplate": spec}
    return [config_map, {"apiVersion": "ray.io/v1", "kind": "RayCronJob", "metadata": about, "spec": cron}]


def text_of(documents: list[Manifest]) -> str:
    """As a file for `kubectl apply -f`."""
    return yaml.dump_all(documents, Dumper=_Dumper, sort_keys=False, width=120, allow_unicode=True)


class _Dumper(yaml.SafeDumper):
    """Texts of several lines as they are, nothing by reference."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


def _text_node(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style="|" if "\n" in text else None)


_Dumper.add_representer(str, _text_node)


def _spec(job: Job, name: str) -> Manifest:
    config = job.jobs.kuberay
    max_nodes = 1 + sum(shape.nodes for shape in job.shapes.values())
    sets = ("cluster.address=auto", f"cluster.nodes.max_nodes={max_nodes}")
    words = ["tokenmill", *job.command(f"{_FOLDER}/config.yaml", *sets)]
    cluster: Manifest = {
        "rayVersion": metadata.version("ray"),
        "enableInTreeAutoscaling": True,
        "autoscalerOptions": {"idleTimeoutSeconds": config.idle_s},
        "headGroupSpec": {
            "rayStartParams": {"num-cpus": "0", "dashboard-host": "0.0.0.0"},
            "template": _pod(job, name, "ray-head", Shape(cpus=config.head_cpus, memory_gb=config.head_memory_gb)),
        },
        "workerGroupSpecs": [_group(job, name, phases, shape) for phases, shape in job.shapes.items()],
    }
    if config.redis is not None:
        cluster["gcsFaultToleranceOptions"] = _redis(config.redis, job)
    return {
        "entrypoint": shlex.join(words),
        "jobId": name,
        "submissionMode": "K8sJobMode",
        "backoffLimit": config.retries,
        "shutdownAfterJobFinishes": True,
        "ttlSecondsAfterFinished": config.keep_s,
        "suspend": config.queue is not None,  # Kueue starts it
        "rayClusterSpec": cluster,
    }


def _group(job: Job, name: str, phases: tuple[str, ...], shape: Shape) -> Manifest:
    at_least = shape.nodes if shape.min_nodes is None else shape.min_nodes
    return {
        "groupName": "-".join(phases),
        "replicas": at_least,
        "minReplicas": at_least,
        "maxReplicas": shape.nodes,
        "rayStartParams": {},
        "template": _pod(job, name, "ray-worker", shape),
    }


def _pod(job: Job, name: str, container: str, shape: Shape) -> Manifest:
    config = job.jobs.kuberay
    size = {"cpu": str(shape.cpus or _CPUS), "memory": f"{shape.memory_gb or _MEMORY_GB}Gi"}
    gpus = {"nvidia.com/gpu": str(shape.gpus)} if shape.gpus else {}
    mounts = [{"name": "config", "mountPath": _FOLDER, "readOnly": True}]
    mounts += [{"name": f"volume-{n}", "mountPath": path} for n, path in enumerate(config.volumes.values())]
    volumes: list[Manifest] = [{"name": "config", "configMap": {"name": name}}]
    volumes += [
        {"name": f"volume-{n}", "persistentVolumeClaim": {"claimName": claim}} for n, claim in enumerate(config.volumes)
    ]
    tolerations = [each.model_dump(exclude_none=True) for each in shape.tolerations]
    for each in tolerations:
        each["operator"] = "Equal" if "value" in each else "Exists"
    if gpus and not any(each["key"] == "nvidia.com/gpu" for each in tolerations):
        tolerations.append({"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"})
    pod: Manifest = {
        "terminationGracePeriodSeconds": _GRACE_S,
        "securityContext": {"runAsNonRoot": True},
        "containers": [
            {
                "name": container,
                "image": config.image,
                "env": _environment(job, config),
                "resources": {"requests": size | gpus, "limits": size | gpus},
                "volumeMounts": mounts,
            }
        ],
        "volumes": volumes,
    }
    if shape.node_selector:
        pod["nodeSelector"] = dict(shape.node_selector)
    if tolerations:
        pod["tolerations"] = tolerations
    return {"metadata": {"labels": dict(LABEL)}, "spec": pod}


def _environment(job: Job, config: OnKubeRay) -> list[Manifest]:
    plain: list[Manifest] = [{"name": name, "value": value} for name, value in sorted(job.jobs.env.items())]
    return plain + [{"name": name, "valueFrom": _reference(config, name)} for name in job.secrets]


def _reference(config: OnKubeRay, key: str) -> Manifest:
    return {"secretKeyRef": {"name": config.secret, "key": key}}


def _redis(address: str, job: Job) -> Manifest:
    has_password = _REDIS_PASSWORD in job.secrets
    password = {"redisPassword": {"valueFrom": _reference(job.jobs.kuberay, _REDIS_PASSWORD)}} if has_password else {}
    return {"redisAddress": address, **password}
