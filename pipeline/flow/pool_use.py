"""How many workers a flow's pools had, and how busy they were: which pool to enlarge, and whether a GPU waited for
data.
"""

import time
from collections.abc import Iterator, Sequence
from typing import Any

import ray.data
from ray.data._internal.execution.operators.actor_pool_map_operator import ActorPoolMapOperator


class PoolSizes:
    """Workers of the pools of a dataset that is being read; `observe` it now and then. `planned` are those that they
    begin with; pools that do not grow have them to the end.
    """

    def __init__(self, planned: Sequence[int], grows: bool, pools: Sequence[ActorPoolMapOperator] = ()):
        self.most = list(planned)
        self._pools, self._last = pools if grows else (), time.monotonic()
        self._span_s, self._worker_s = 0.0, [0.0] * len(planned)

    def observe(self) -> None:
        """See how many are at work."""
        passed_s = time.monotonic() - self._last
        self._last += passed_s
        self._span_s += passed_s
        for number, pool in enumerate(self._pools):
            at_work = pool.get_actor_info().running  # without those that are started anew
            self.most[number] = max(self.most[number], at_work)
            self._worker_s[number] += at_work * passed_s

    @property
    def means(self) -> list[float]:
        """So far."""
        if not self._pools or not self._span_s:
            return [float(each) for each in self.most]
        return [each / self._span_s for each in self._worker_s]


def running(dataset: ray.data.Dataset, planned: Sequence[int], grows: bool) -> tuple[Iterator[Any], PoolSizes]:
    """Start it: its bundles of blocks, and its pools, when the first bundle is there."""
    bundles, _, executor = dataset._execute_to_iterator(capture_executor=False)
    topology = (executor and executor._topology) or {}
    pools = [each for each in topology if isinstance(each, ActorPoolMapOperator)]
    return iter(bundles), PoolSizes(planned, grows and len(pools) == len(planned), pools)


def pools_used(dataset: ray.data.Dataset, names: Sequence[str], sizes: PoolSizes) -> list[dict[str, Any]]:
    """Of each pool of a dataset that was read to its end: `pool`, `workers` (at most), and `busy`, the share 0..1 of
    their time.

    Time in stages counts, from the pool's first block to its last: neither its workers' start nor waiting for blocks.
    Nothing where Ray kept no times.
    """
    pools = [each for each in _operators(dataset.get_stats_summary()) if each.function_body_time is not None]
    if len(pools) != len(names):
        return []
    made = []
    for name, most, mean, each in zip(names, sizes.most, sizes.means, pools, strict=True):
        offered_s = max(mean, 1e-6) * max(each.latest_end_time - each.earliest_start_time, 1e-6)
        busy = round(min(1.0, each.function_body_time.sum / offered_s), 3)
        made.append({"pool": name, "workers": most, "busy": busy})
    return made


def _operators(summary: Any) -> Iterator[Any]:
    for parent in summary.parents:
        yield from _operators(parent)
    yield from summary.operators_stats
