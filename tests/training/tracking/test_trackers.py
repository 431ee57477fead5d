"""TensorBoard, W&B (offline) and MLflow (a local folder) are told of each line of the log once, over all starts."""

import json
import struct
import sys
from pathlib import Path

import pytest

from tokenmill import storage
from tokenmill.storage.errors import TrainingError
from tokenmill.storage.run_log import TrainLog
from tokenmill.training.resources import Monitor
from tokenmill.training.tracking import trackers as module
from tokenmill.training.tracking.events import read_events
from tokenmill.training.tracking.trackers import numbers_of, tracking

PNG = bytes.fromhex(
    "89504e470d0a1a0a0000000d4948445200000001000000010802000000907753de0000000c49444154789c63606060000000040001f61738550000"
    "000049454e44ae426082"
)


def line(step):
    return {"step": step, "loss": 3.0 / step, "image": 2.0, "lr": 0.1, "tokens": 10, "seconds": 1.0 * step}


VALIDATED = {"step": 4, "val": {"loss": 2.5}, "val_by_place": {"image": {"64": 2.25}}, "seconds": 5.0}
SPIKED = line(5) | {"spikes": [{"step": 5, "loss": 9.0}]}
SAMPLED = {"step": 6, "samples": "samples/step_000006.png", "seconds": 7.0}
LINES = [line(1), line(2), line(3), line(4), VALIDATED, SPIKED, line(6), SAMPLED]
NOTES: list[str] = []


@pytest.fixture
def tracked(make_job):
    """(*trackers) -> a job, with the picture that its log names."""

    def make(*trackers):
        job = make_job(monitor=Monitor(track=list(trackers)))
        storage.write_bytes(job.at(SAMPLED["samples"]), PNG)
        return job

    return make


def tell_in_two_starts(job, num_lines=4):
    """Killed after so many lines, resumed from step 2: lines of steps 3 and 4 are written again."""
    log = TrainLog(job.run_uri, 0)
    with tracking(job, NOTES.append) as tell:
        for each in LINES[:num_lines]:
            log.append(each)
            tell(each)
    log = TrainLog(job.run_uri, 2)
    with tracking(job, NOTES.append) as tell:
        for each in LINES[2:]:
            log.append(each)
            tell(each)
    assert not NOTES


def test_lines_become_numbers_by_tag():
    assert numbers_of(LINES[1]) == {
        "train/loss": 1.5, "train/image": 2.0, "train/lr": 0.1, "train/tokens": 10, "train/seconds": 2.0
    }  # fmt: skip
    assert numbers_of(VALIDATED) == {"val/loss": 2.5, "val_by_place/image/64": 2.25}
    assert numbers_of(SPIKED)["train/spikes"] == 1 and numbers_of(SAMPLED) == {}


def test_tensorboard_is_told_by_default(tracked):
    job = tracked(*Monitor().track)
    tell_in_two_starts(job)
    found = [(event.step, value.tag) for event in read_events(job.at("tensorboard")) for value in event.summary.value]
    assert [step for step, tag in found if tag == "train/loss"] == [1, 2, 3, 4, 5, 6]
    assert {(4, "val/loss"), (5, "train/spikes"), (6, "samples")} <= set(found) and len(found) == len(set(found))


def test_what_was_logged_while_nobody_listened_is_told_at_the_next_start(tracked):
    job = tracked("tensorboard")
    log = TrainLog(job.run_uri, 0)
    for each in LINES[:4]:
        log.append(each)
    with tracking(job, NOTES.append):
        pass
    assert [event.step for event in read_events(job.at("tensorboard")) if event.summary.value] == [1, 2, 3, 4]


def test_mlflow_has_each_step_once_in_one_run(tracked, tmp_path, monkeypatch):
    mlflow = pytest.importorskip("mlflow")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"file://{tmp_path / 'mlruns'}")
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    job = tracked("mlflow")
    tell_in_two_starts(job)
    client = mlflow.MlflowClient()
    [run] = client.search_runs([client.get_experiment_by_name("tokenmill").experiment_id])
    assert run.info.run_name == "run" and run.info.status == "FINISHED"
    assert run.data.params["optimizer/steps"] == "8" and run.data.params["model/num_layers"] == "2"
    history = client.get_metric_history(run.info.run_id, "train/loss")
    assert [(each.step, each.value) for each in history] == [(step, 3.0 / step) for step in range(1, 7)]
    [validated] = client.get_metric_history(run.info.run_id, "val_by_place/image/64")
    assert (validated.step, validated.value) == (4, 2.25)
    [picture] = client.list_artifacts(run.info.run_id, "samples")
    assert picture.path == "samples/step_000006.png"


def test_mlflow_needs_the_address_of_its_server(tracked, monkeypatch):
    pytest.importorskip("mlflow")
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    with pytest.raises(TrainingError, match="set MLFLOW_TRACKING_URI"), tracking(tracked("mlflow"), NOTES.append):
        pass


def test_wandb_has_each_step_once_in_one_run(tracked, monkeypatch):
    """Offline: a file for each start, of one run."""
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    job = tracked("wandb")
    tell_in_two_starts(job, 5)
    found, ids = [], set()
    for path in sorted(set(Path(job.run_uri).rglob("run-*.wandb")), key=lambda path: path.stat().st_mtime):
        if path.parent.is_symlink() or path.parent.name == "latest-run":
            continue
        for record in wandb_records(path):
            ids |= {record.run.run_id} if record.run.run_id else set()
            items = {(item.key or "/".join(item.nested_key)): item.value_json for item in record.history.item}
            found += [items] if items else []
    assert ids == {storage.read_json(job.at("tracking.json"))["wandb"]}
    losses = [(json.loads(each["_step"]), json.loads(each["train/loss"])) for each in found if "train/loss" in each]
    assert losses == [(step, 3.0 / step) for step in range(1, 7)]
    assert [each["_step"] for each in found if "val/loss" in each] == ["4"]
    assert [each["_step"] for each in found if "samples" in each or "samples/_type" in each] == ["6"]


def wandb_records(path):
    """Of a log in LevelDB's format: blocks of 32 KiB, of chunks with checksum, length and which part they are."""
    from wandb.proto.wandb_internal_pb2 import Record

    data, at, whole = path.read_bytes(), 7, b""
    while at + 7 <= len(data):
        if 32768 - at % 32768 < 7:
            at += 32768 - at % 32768
            continue
        length, part = struct.unpack("<HB", data[at + 4 : at + 7])
        whole += data[at + 7 : at + 7 + length]
        at += 7 + length
        if part in (1, 4):
            yield Record.FromString(whole)
            whole = b""


@pytest.mark.parametrize("name", ["wandb", "mlflow"])
def test_one_that_is_not_installed_is_said_with_how_to(tracked, monkeypatch, name):
    monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(TrainingError) as missing, tracking(tracked(name), NOTES.append):
        pass
    assert f"train.monitor.track: {name} is not installed" in str(missing.value)
    assert f"pip install 'tokenmill[{name}]'" in str(missing.value)


class Deaf:
    """A service that answers now and then."""

    def __init__(self, job):
        self.told, self.answers, self.closed = [], True, False

    def tell(self, step, numbers, pictures):
        if not self.answers:
            raise ConnectionError("no route to host")
        self.told.append(step)

    def close(self):
        self.closed = True


def test_a_service_that_does_not_answer_ends_nothing_and_is_told_later(tracked, monkeypatch):
    deaf, notes = Deaf(None), []
    monkeypatch.setitem(module._OPEN, "wandb", lambda job: deaf)
    monkeypatch.setattr(module, "_RETRY_S", -1.0)
    with tracking(tracked("wandb"), notes.append) as tell:
        tell(line(1))
        deaf.answers = False
        tell(line(2))
        tell(line(3))
        assert deaf.told == [1] and len(notes) == 1 and "wandb cannot be told: no route to host" in notes[0]
        deaf.answers = True
        tell(line(4))
        assert deaf.told == [1, 2, 3, 4]
    assert deaf.closed
