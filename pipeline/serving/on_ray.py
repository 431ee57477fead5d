"""A captioner's servers on Ray: each held by an actor of its own, on a machine with room for its GPUs.

Ray gives the actor its GPUs (CUDA_VISIBLE_DEVICES), and ends it with the driver; the server ends with the actor. A
server whose machine is lost is not started elsewhere: the others do its work.
"""

import os
from typing import Any

import ray
from ray.exceptions import RayActorError

from tokenmill.pipeline.serving.fleet import Held, Hold
from tokenmill.pipeline.serving.server import ModelServer, ServerError, ServerSpec

_THREADS = 4  # an actor is asked how it is while it waits for its server


class _Holder:
    """The actor."""

    def __init__(self, spec: ServerSpec):
        self._server = ModelServer(spec, ray.util.get_node_ip_address())

    def ready(self) -> str:
        return self._server.ready()

    def trouble(self) -> str | None:
        return self._server.trouble()

    def end(self) -> None:
        self._server.end()


class _Remote:
    """A server that an actor holds."""

    def __init__(self, actor: Any, name: str):
        self._actor, self._name = actor, name
        self._ended: Any = None

    def ready(self) -> str:
        try:
            return ray.get(self._actor.ready.remote())
        except ServerError as error:  # as a worker raised it: with the worker's traceback in its words
            raise ServerError(str(getattr(error, "cause", error))) from None
        except RayActorError as error:
            raise ServerError(f"{self._name}: its machine was lost, or its actor: {error}") from error

    def trouble(self) -> str | None:
        try:
            return ray.get(self._actor.trouble.remote())
        except RayActorError:
            return f"{self._name}: its machine was lost, or its actor"

    def stop(self) -> None:
        self._ended = self._actor.end.remote()

    def end(self) -> None:
        try:
            ray.get(self._ended)
        except RayActorError:
            return
        ray.kill(self._actor)


def held_on_ray(gpus_each: int) -> Hold:
    """Held by actors. Ray must be up."""
    actor_of: Any = ray.remote(_Holder)
    how: dict[str, Any] = {"num_cpus": 0, "max_concurrency": _THREADS}
    how |= {"num_gpus": gpus_each} if gpus_each else {"scheduling_strategy": "SPREAD"}
    # Ray gives an actor without CPUs one thread; the server has as many as it would have by hand.
    environment = {"OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS")}

    def hold(spec: ServerSpec) -> Held:
        return _Remote(actor_of.options(**how).remote(spec._replace(environment=environment)), spec.name)

    return hold


def gpus_of_nodes() -> list[int]:
    """Of each machine of the cluster."""
    return [int(node["Resources"].get("GPU", 0)) for node in ray.nodes() if node["Alive"]]
