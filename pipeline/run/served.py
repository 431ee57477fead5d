"""The servers that a run starts for its captioner, and the config that knows their addresses."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pyarrow as pa

from tokenmill.pipeline.config import RunConfig
from tokenmill.pipeline.run.pools import caption_stages
from tokenmill.pipeline.run.run import Run
from tokenmill.pipeline.serving import fleet
from tokenmill.pipeline.serving.fleet import Held

_MANAGED = "vllm"


def check_servers(run: Run) -> None:
    """What can be known of the servers before any work, on this machine. Raises CaptionError."""
    part = run.config.caption
    if part.active is not None and part.active.engine == _MANAGED and run.config.cluster.address is None:
        fleet.command_of(part.captioner, part.active)
        fleet.number_of(part.captioner, part.active, [len(fleet.gpus_here())])


@contextmanager
def served(run: Run, todo: pa.Table) -> Iterator[tuple[RunConfig, Callable[[], list[str]]]]:
    """The config with the addresses of the servers that it wants started, and why some of them are down for good.

    They are well inside, and gone after it. Raises ServerError and CaptionError.
    """
    part = run.config.caption
    name, captioner = part.captioner, part.active
    if captioner is None or captioner.engine != _MANAGED or not todo.num_rows:
        yield run.config, list
        return
    gpus_each = captioner.resources.gpus_per_server
    if run.workers.is_little(caption_stages(run.config), todo):
        hold, gpus = fleet.held_here(gpus_each), [len(fleet.gpus_here())]
    else:
        run.workers.start_ray()
        from tokenmill.pipeline.serving import on_ray

        hold, gpus = on_ray.held_on_ray(gpus_each), on_ray.gpus_of_nodes()
    number = fleet.number_of(name, captioner, gpus)
    log = fleet.log_of(run.catalog.root, name, run.run_id)
    run.console.print(f"  caption: starting {number} x {name}; logs: {log}-*.log", markup=False, highlight=False)
    with fleet.fleet(name, captioner, number, log, hold) as held:
        urls = tuple(server.ready() for server in held)
        resources = captioner.resources.model_copy(update={"urls": urls})
        known = part.captioners | {name: captioner.model_copy(update={"resources": resources})}
        caption = part.model_copy(update={"captioners": known})
        yield run.config.model_copy(update={"caption": caption}), lambda: _down(held)


def _down(held: list[Held]) -> list[str]:
    return [why for server in held if (why := server.trouble()) is not None]
