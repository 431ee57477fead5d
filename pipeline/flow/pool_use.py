"""How busy the workers of a flow's pools were: which pool to enlarge, and whether a GPU waited for data."""

from collections.abc import Iterator, Sequence
from typing import Any

import ray.data


def pools_used(dataset: ray.data.Dataset, names: Sequence[str], num_workers: Sequence[int]) -> list[dict[str, Any]]:
    """Of each pool of a dataset that was read to its end: `pool`, `workers`, and `busy`, the share 0..1 of their time.

    Time in stages counts, from the pool's first block to its last: neither its workers' start nor waiting for blocks.
    Nothing where Ray kept no times.
    """
    pools = [each for each in _operators(dataset.get_stats_summary()) if each.function_body_time is not None]
    if len(pools) != len(names):
        return []
    made = []
    for name, number, each in zip(names, num_workers, pools, strict=True):
        offered_s = number * max(each.latest_end_time - each.earliest_start_time, 1e-6)
        busy = round(min(1.0, each.function_body_time.sum / offered_s), 3)
        made.append({"pool": name, "workers": number, "busy": busy})
    return made


def _operators(summary: Any) -> Iterator[Any]:
    for parent in summary.parents:
        yield from _operators(parent)
    yield from summary.operators_stats
