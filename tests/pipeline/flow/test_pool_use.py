"""A pool that waits for another is seen to wait."""

import sys
import time

import pyarrow as pa
import ray
from ray.data import ActorPoolStrategy
from rich.console import Console

from tokenmill.pipeline.flow.pool_use import pools_used, running
from tokenmill.pipeline.reports.terminal import Meter, PhaseReport


class Sleeps:
    def __init__(self, seconds: float) -> None:
        self._seconds = seconds

    def __call__(self, table: pa.Table) -> pa.Table:
        time.sleep(self._seconds)
        return table


def used(seconds):
    dataset = ray.data.from_arrow([pa.table({"x": [number]}) for number in range(6)])
    for each in seconds:
        dataset = dataset.map_batches(
            Sleeps,
            fn_constructor_args=(each,),
            batch_size=1,
            batch_format="pyarrow",
            compute=ActorPoolStrategy(size=1),
            num_cpus=0.5,
        )
    bundles, sizes = running(dataset, [1, 1], grows=False)
    for _ in bundles:
        sizes.observe()
    return pools_used(dataset, ["Load", "Encode"], sizes)


def test_the_slower_pool_is_the_busier(local_ray):
    ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])
    load, encode = used((0.01, 0.4))
    assert (load["pool"], encode["pool"], encode["workers"]) == ("Load", "Encode", 1)
    assert encode["busy"] > 0.5 and encode["busy"] > load["busy"]
    load, encode = used((0.4, 0.01))
    assert load["busy"] > 0.5 > encode["busy"]


def test_shares_are_recorded_and_shown_of_long_flows():
    console = Console(record=True, width=120, quiet=False)
    report = PhaseReport("tokenize")
    meter = Meter(console, report, 10, "media")
    pools = [{"pool": "LoadFrames", "workers": 2, "busy": 0.314}, {"pool": "Tokenize", "workers": 1, "busy": 0.97}]
    meter.busy(pools, 2.0)
    assert console.export_text() == "" and report.as_dict()["pools"] == pools
    meter.busy(pools, 60.0)
    assert "tokenize: workers busy: LoadFrames 31% of 2, Tokenize 97% of 1" in console.export_text()
