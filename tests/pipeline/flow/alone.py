"""Rows that take a moment, in workers of their own, on a Ray cluster whose nodes die: `python alone.py ADDRESS LOG`.
The id of each node that begins them is a line of LOG; the last line that is said is what came of them.
"""

import sys
import time
from types import SimpleNamespace
from typing import Any

import pyarrow as pa
import ray

from tokenmill.pipeline.config import Cluster
from tokenmill.pipeline.flow.alone import AloneWorkers
from tokenmill.pipeline.flow.flow import Group
from tokenmill.pipeline.flow.on_ray import _Worker, cluster
from tokenmill.pipeline.phases import Pool
from tokenmill.stages.table.limits import Limits


class Slow:
    """Returns its rows."""

    def __init__(self, log: str):
        self._log = log

    def __call__(self, table: pa.Table) -> pa.Table:
        with open(self._log, "a") as log:
            log.write(f"{ray.get_runtime_context().get_node_id()}\n")
        time.sleep(5)
        return table


def main(address: str, log: str) -> None:
    ray.cloudpickle.register_pickle_by_value(sys.modules["__main__"])
    group = Group(((Slow, (log,)),), Pool(num_cpus=1), 1)
    flow: Any = SimpleNamespace(groups=[group], limits=Limits())
    with cluster(Cluster(address=address)):
        alone = AloneWorkers(flow, _Worker)
        print(alone(pa.table({"uri": ["a", "b"]})), flush=True)
        alone.close()


if __name__ == "__main__":
    main(*sys.argv[1:])
