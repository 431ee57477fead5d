"""Lines of a training's log -> TensorBoard, Weights & Biases, MLflow.

The driver tells them what it reads in log.jsonl, which stays the record: workers need no keys and no network for it. A
resumed training writes lines again that it had written before it was killed; what was told of a step is not told again.
The run of a service is one over all starts, by its id in `run/tracking.json`. A service that does not answer is told
later, and ends no training. Keys and addresses come from the environment, as each of them documents.
"""

import importlib.util
import io
import os
import tempfile
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, Protocol

from PIL import Image

from tokenmill import storage
from tokenmill.storage import scratch
from tokenmill.storage.errors import TrainingError
from tokenmill.storage.identity import fingerprint_of
from tokenmill.storage.run_log import Record, read_log
from tokenmill.training.job import TrainJob, name_of

_PROJECT = "tokenmill"
_MOST_WAITING = 10_000  # lines for a service that does not answer
_RETRY_S = 30.0
_KEEP_EVERY_S = 30.0
_KEPT = "tracking.json"
_EXTRAS = ("wandb", "mlflow")  # of pyproject.toml
_VALIDATION = ("val", "val_by_place", "val_by_frame")

Numbers = Mapping[str, float]
Pictures = Mapping[str, Callable[[], bytes]]  # PNGs by tag, read when they are told


class _Told(Protocol):
    def tell(self, step: int, numbers: Numbers, pictures: Pictures) -> None: ...

    def close(self) -> None: ...


@contextmanager
def tracking(job: TrainJob, note: Callable[[str], None]) -> Iterator[Callable[[Record], None]]:
    """What is to be called with each new line of the log; older lines of it are told first, and `note` of what goes
    wrong.

    Raises TrainingError for a tracker that is not installed, or does not answer at the start.
    """
    check_trackers(job.monitor.track)
    told = {name: _Late(name, _opened(name, job), note) for name in dict.fromkeys(job.monitor.track)}

    def tell(record: Record) -> None:
        numbers, pictures = numbers_of(record), _pictures_of(job, record)
        for each in told.values():
            each.tell(record["step"], numbers, pictures)

    try:
        for record in read_log(job.run_uri):
            tell(record)
        yield tell
    finally:
        for each in told.values():
            each.close()


def numbers_of(record: Record) -> dict[str, float]:
    """The numbers of a line by tag, such as train/loss, val/image, val_by_place/image/64."""
    if not any(name in record for name in _VALIDATION):
        found = {f"train/{name}": value for name, value in record.items() if isinstance(value, int | float)}
        found |= {"train/spikes": len(record["spikes"])} if "spikes" in record else {}
        return {} if "samples" in record else {tag: value for tag, value in found.items() if tag != "train/step"}
    return dict(_flat({name: record[name] for name in _VALIDATION if name in record}))


def _flat(tree: Mapping[str, Any], before: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in tree.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{before}{name}/")
        else:
            yield before + name, value


def _pictures_of(job: TrainJob, record: Record) -> Pictures:
    uri = job.at(record["samples"]) if record.get("samples") else None
    return {} if uri is None or not storage.exists(uri) else {"samples": partial(storage.read_bytes, uri)}


class _Late:
    """Keeps what a tracker could not be told, and tries again with later lines."""

    def __init__(self, name: str, tracker: _Told, note: Callable[[str], None]):
        self._name, self._tracker, self._note = name, tracker, note
        self._waiting = deque[tuple[int, Numbers, Pictures]](maxlen=_MOST_WAITING)
        self._is_well, self._tried_s = True, 0.0

    def tell(self, step: int, numbers: Numbers, pictures: Pictures) -> None:
        self._waiting.append((step, numbers, pictures))
        if self._is_well or time.monotonic() - self._tried_s > _RETRY_S:
            self._try()

    def close(self) -> None:
        self._try()
        if not self._waiting:
            self._trying(self._tracker.close)

    def _try(self) -> None:
        while self._waiting:
            if not self._trying(lambda: self._tracker.tell(*self._waiting[0])):
                return
            self._waiting.popleft()

    def _trying(self, call: Callable[[], None]) -> bool:
        try:
            call()
        except Exception as error:  # of whatever kind: a service must end no training
            if self._is_well:
                self._note(f"{self._name} cannot be told: {error}; it is tried again, and log.jsonl has all of it")
            self._is_well, self._tried_s = False, time.monotonic()
            return False
        self._is_well = True
        return True


def _opened(name: str, job: TrainJob) -> _Told:
    try:
        return _OPEN[name](job)
    except TrainingError:
        raise
    except Exception as error:
        said = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise TrainingError(
            f"train.monitor.track: {name}: {said}; set what it asks for in the environment, or take it out"
        ) from error


def check_trackers(names: Iterable[str]) -> None:
    """Raises TrainingError for one that is not installed."""
    for name in names:
        if name in _EXTRAS and importlib.util.find_spec(name) is None:
            raise TrainingError(
                f"train.monitor.track: {name} is not installed; pip install 'tokenmill[{name}]' where the command "
                "runs, or take it out"
            )


def _kept(job: TrainJob, name: str, new: Callable[[], Any]) -> Any:
    """What is kept of a service over all starts; where there is nothing yet, `new` of it."""
    kept = storage.read_json(job.at(_KEPT)) if storage.exists(job.at(_KEPT)) else {}
    if name not in kept:
        kept[name] = new()
        _keep(job, **kept)
    return kept[name]


def _keep(job: TrainJob, **values: Any) -> None:
    kept = storage.read_json(job.at(_KEPT)) if storage.exists(job.at(_KEPT)) else {}
    storage.write_json(job.at(_KEPT), kept | values)


class _WeightsAndBiases:
    def __init__(self, job: TrainJob):
        import wandb

        self._wandb = wandb
        made = f"{name_of(job.run_uri)}-{fingerprint_of(job.run_uri, time.time())}"
        self._job, self._kept_at_s = job, time.monotonic()
        self._run = self._wandb.init(
            project=os.environ.get("WANDB_PROJECT", _PROJECT),
            id=_kept(job, "wandb", lambda: made),
            name=os.environ.get("WANDB_NAME", name_of(job.run_uri)),
            dir=os.environ.get("WANDB_DIR") or (None if storage.is_remote(job.run_uri) else job.run_uri),
            config=job.config.model_dump(),
            resume="allow",
        )
        # the last step that it was told before; offline it does not know
        self._known = self._newest = max(self._run.step - 1, _kept(job, "wandb_told", lambda: -1))

    def tell(self, step: int, numbers: Numbers, pictures: Pictures) -> None:
        if step > self._known:
            shown = {tag: self._wandb.Image(Image.open(io.BytesIO(read()))) for tag, read in pictures.items()}
            self._run.log({**numbers, **shown}, step=step)
            self._newest = step
            if time.monotonic() - self._kept_at_s > _KEEP_EVERY_S:
                self._keep()

    def close(self) -> None:
        self._run.finish()
        self._keep()

    def _keep(self) -> None:
        _keep(self._job, wandb_told=self._newest)
        self._kept_at_s = time.monotonic()


class _Mlflow:
    def __init__(self, job: TrainJob):
        import mlflow

        if not os.environ.get("MLFLOW_TRACKING_URI"):
            raise TrainingError("train.monitor.track: mlflow: set MLFLOW_TRACKING_URI to the address of its server")
        self._client, self._entities = mlflow.MlflowClient(), mlflow.entities
        self._id = _kept(job, "mlflow", lambda: self._new(job))
        self._known: dict[str, int] = {}  # tag -> the last step that it was told before
        for tag in self._client.get_run(self._id).data.metrics:
            self._known[tag] = max(metric.step for metric in self._client.get_metric_history(self._id, tag))

    def _new(self, job: TrainJob) -> str:
        name = os.environ.get("MLFLOW_EXPERIMENT_NAME", _PROJECT)
        found = self._client.get_experiment_by_name(name)
        experiment = self._client.create_experiment(name) if found is None else found.experiment_id
        run_id: str = self._client.create_run(experiment, run_name=name_of(job.run_uri)).info.run_id
        params = [self._entities.Param(key, str(value)) for key, value in _flat(job.config.model_dump())]
        self._client.log_batch(run_id, params=params)
        return run_id

    def tell(self, step: int, numbers: Numbers, pictures: Pictures) -> None:
        now_ms = round(time.time() * 1000)
        fresh = {tag: value for tag, value in numbers.items() if step > self._known.get(tag, -1)}
        metrics = [self._entities.Metric(tag, value, now_ms, step) for tag, value in fresh.items()]
        self._client.log_batch(self._id, metrics=metrics)
        for tag, read in pictures.items() if step > max(self._known.values(), default=-1) else ():
            with tempfile.TemporaryDirectory(prefix="tokenmill-", dir=scratch.folder()) as folder:
                path = Path(folder) / f"step_{step:06d}.png"
                path.write_bytes(read())
                self._client.log_artifact(self._id, str(path), tag)

    def close(self) -> None:
        self._client.set_terminated(self._id)


def _tensorboard(job: TrainJob) -> _Told:
    from tokenmill.training.tracking.events import Events  # imports torch

    return Events(job.at("tensorboard"))


_OPEN: dict[str, Callable[[TrainJob], _Told]] = {
    "tensorboard": _tensorboard,
    "wandb": _WeightsAndBiases,
    "mlflow": _Mlflow,
}
