"""The machines of a cluster, before anything is planned on them, and when others come: as many as are awaited, with the
code of this process and the secrets that the config names.

Each node is asked once, by a task that takes no CPU. Ray itself refuses another Ray or Python.
"""

import os
import time
from importlib import metadata
from typing import Any

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from tokenmill.pipeline.config import Cluster
from tokenmill.storage.errors import UserError
from tokenmill.storage.version import code_version

_LOOK_S = 0.5
_ANSWER_S = 120.0  # a node's first worker starts, and imports the code
_DIED = (  # a node, since it was listed
    ray.exceptions.RaySystemError,
    ray.exceptions.TaskUnschedulableError,
    ray.exceptions.WorkerCrashedError,
)
_asked: set[str] = set()  # ids of nodes, which are never used again


class NodeError(UserError):
    """A machine of the cluster cannot do the work of this process."""


def await_nodes(config: Cluster) -> None:
    """Wait for `cluster.nodes.min_nodes`, at most `cluster.nodes.wait_s`. Ray must be up."""
    deadline = time.monotonic() + config.nodes.wait_s
    while len(_alive()) < config.nodes.min_nodes and time.monotonic() < deadline:
        time.sleep(_LOOK_S)


def may_come(config: Cluster) -> bool:
    """Whether an autoscaler adds nodes where work waits for them."""
    return config.nodes.max_nodes is not None and len(_alive()) < config.nodes.max_nodes


def check_nodes(secrets: list[str]) -> None:
    """Ask each node that was not asked before. Raises NodeError, naming both versions, or the secrets that a node's
    environment lacks.
    """
    new = {name: host for name, host in _alive().items() if name not in _asked}
    asked = {name: _about(name, secrets) for name in new}
    for name, answer in asked.items():
        try:
            there, missing = ray.get(answer, timeout=_ANSWER_S)
        except ray.exceptions.RayTaskError as error:
            there, missing = f"none that can be used ({str(error).strip().splitlines()[-1]})", []
        except _DIED:
            continue
        if there != code_version():
            raise NodeError(
                f"node {new[name]} has tokenmill {there}, this process {code_version()}: put the same version on both, "
                "by a new image, or by `tokenmill submit` with jobs.ray.code: shipped"
            )
        if missing:
            raise NodeError(
                f"node {new[name]} lacks {', '.join(missing)} of cluster.nodes.secrets: set it in the environment that "
                "Ray was started in there"
            )
        _asked.add(name)


def _alive() -> dict[str, str]:
    """Addresses by id."""
    return {node["NodeID"]: node["NodeManagerAddress"] for node in ray.nodes() if node["Alive"]}


def _about(name: str, secrets: list[str]) -> Any:
    def answer() -> tuple[str, list[str]]:  # inside a function, so that it is sent as it is and not by its name
        missing = [each for each in secrets if not os.environ.get(each)]
        try:
            from tokenmill.storage.version import code_version
        except ImportError:
            return there_at_least(), missing
        return code_version(), missing

    def there_at_least() -> str:
        try:
            return f"{metadata.version('tokenmill')} (of before there were cluster jobs)"
        except metadata.PackageNotFoundError:
            return "none"

    there = NodeAffinitySchedulingStrategy(name, soft=False)
    return ray.remote(answer).options(num_cpus=0, scheduling_strategy=there, max_retries=2).remote()
