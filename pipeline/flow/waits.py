"""What a flow waits for, where no result comes: blocks at each pool, and what pools want beside what there is."""

from contextlib import suppress
from typing import Any

import ray
from ray.data._internal.stats import get_or_create_stats_actor

from tokenmill.pipeline.flow.flow import Group

_ANSWER_S = 10.0


def waits_of(groups: list[Group]) -> str:
    """In words for a person. Ray must be up."""
    found = [_of_pool(group, operator) for group, operator in zip(groups, _operators(len(groups)), strict=True)]
    have, free = ray.cluster_resources(), ray.available_resources()
    for name, unit in (("CPU", "num_cpus"), ("GPU", "num_gpus")):
        wanted = sum(group.workers * getattr(group.pool, unit) for group in groups)
        if wanted > have.get(name, 0.0):
            found.append(
                f"the pools want {wanted:g} {name}, the cluster has {have.get(name, 0.0):g}: a node is missing"
            )
        elif wanted:
            found.append(f"{free.get(name, 0.0):g} of {have[name]:g} {name} are free")
    dead = sum(not node["Alive"] for node in ray.nodes())
    return "; ".join([*found, *([f"{dead} node(s) died"] if dead else [])])


def _of_pool(group: Group, operator: dict[str, Any] | None) -> str:
    name = " > ".join(stage.__name__ for stage, _ in group.stages)
    who = f"{name} ({group.workers} x {group.pool.num_cpus:g} CPU"
    who += f" and {group.pool.num_gpus:g} GPU)" if group.pool.num_gpus else ")"
    if operator is None:
        return who
    total = "" if operator["total"] is None else f" of {operator['total']}"
    at = f"{operator['progress']}{total} blocks through, {operator['queued_blocks']} wait"
    return f"{who}: {at}"


def _operators(count: int) -> list[dict[str, Any] | None]:
    """What Ray Data says of each pool of the newest flow; nulls where it says nothing, as its books are its own."""
    with suppress(Exception):
        job = ray.get_runtime_context().get_job_id()
        actor: Any = get_or_create_stats_actor()
        flows: dict[str, dict[str, Any]] = ray.get(actor.get_datasets.remote(job), timeout=_ANSWER_S)
        newest = max(flows.values(), key=lambda flow: flow["start_time"])
        operators = [newest["operators"][name] for name in newest["operators"] if name.startswith("MapBatches")]
        if len(operators) == count:
            return operators
    return [None] * count
