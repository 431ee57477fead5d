"""The servers that a run starts for a captioner, and the config that knows their addresses."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext

import pyarrow as pa

from tokenmill import stages
from tokenmill.pipeline.catalog.lease import new_run_id
from tokenmill.pipeline.config import RunConfig
from tokenmill.pipeline.run.pools import caption_stages
from tokenmill.pipeline.run.run import Run
from tokenmill.pipeline.serving import asked, fleet
from tokenmill.pipeline.serving.fleet import Held

_MANAGED = "vllm"


def check_servers(run: Run, name: str) -> None:
    """What can be known of a captioner's servers before any work, on this machine. Raises CaptionError."""
    one = run.config.caption.all[name]
    if one.engine == _MANAGED and run.config.cluster.address is None:
        fleet.command_of(name, one)
        fleet.number_of(name, one, [len(fleet.gpus_here())])


@contextmanager
def served(run: Run, name: str, todo: pa.Table, answers: str) -> Iterator[tuple[RunConfig, Callable[[], list[str]]]]:
    """The config with the addresses of the servers that captioner `name` wants started, and why some of them are down
    for good. While no result comes, the run says how its servers are; `answers` is where theirs are kept.

    They are well inside, and gone after it. Raises ServerError and CaptionError.
    """
    with _started(run, name, todo) as (config, down):
        urls = config.caption.all[name].resources.urls

        def waits() -> str:
            return asked.words_of(name, urls, stages.last_answer_s(answers))

        with run.workers.waiting_for(waits) if urls else nullcontext():
            yield config, down


@contextmanager
def _started(run: Run, name: str, todo: pa.Table) -> Iterator[tuple[RunConfig, Callable[[], list[str]]]]:
    captioner = run.config.caption.all[name]
    if captioner.engine != _MANAGED or not todo.num_rows:
        yield run.config, list
        return
    gpus_each = captioner.resources.gpus_per_server
    if run.workers.is_little(caption_stages(run.config, name), todo):
        hold, gpus = fleet.held_here(gpus_each), [len(fleet.gpus_here())]
    else:
        run.workers.start_ray()
        from tokenmill.pipeline.serving import on_ray

        hold, gpus = on_ray.held_on_ray(gpus_each), on_ray.gpus_of_nodes()
    number = fleet.number_of(name, captioner, gpus)
    log = fleet.log_of(run.catalog.root, name, run.run_id)
    run.console.print(f"  caption: starting {number} x {name}; logs: {log}-*.log", markup=False, highlight=False)
    with fleet.fleet(name, captioner, number, log, hold) as held:
        yield _with_urls(run.config, name, held), lambda: _down(held)


@contextmanager
def served_here(config: RunConfig, name: str) -> Iterator[RunConfig]:
    """The same by one server on this machine. Raises ServerError and CaptionError."""
    captioner = config.caption.all[name]
    if captioner.engine != _MANAGED:
        yield config
        return
    log = fleet.log_of(config.root, name, new_run_id())
    with fleet.fleet(name, captioner, 1, log, fleet.held_here(captioner.resources.gpus_per_server)) as held:
        yield _with_urls(config, name, held)


def _with_urls(config: RunConfig, name: str, held: list[Held]) -> RunConfig:
    urls = tuple(server.ready() for server in held)
    one = config.caption.all[name]
    one = one.model_copy(update={"resources": one.resources.model_copy(update={"urls": urls})})
    caption = config.caption.model_copy(update={"captioners": config.caption.captioners | {name: one}})
    return config.model_copy(update={"caption": caption})


def _down(held: list[Held]) -> list[str]:
    return [why for server in held if (why := server.trouble()) is not None]
