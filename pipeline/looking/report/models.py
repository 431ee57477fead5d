"""What was trained on the catalog: its losses as curves, and the pictures that it drew on the way."""

import io
from dataclasses import dataclass
from typing import Any

import numpy as np
from markupsafe import Markup
from PIL import Image

from tokenmill import storage
from tokenmill.pipeline.catalog.models import finished
from tokenmill.pipeline.looking.charts import curves
from tokenmill.pipeline.looking.report.pictures import Pictures
from tokenmill.storage.run_log import read_log
from tokenmill.training.job import DONE, NOT_LOSSES, PLAN, is_step

_SHOWN, _SAMPLES_PX = 4, 720


@dataclass(frozen=True)
class Model:
    """A training that is finished: its folder's name, done.json, sizes, curves and newest samples."""

    name: str
    stage: str | None
    done: dict[str, Any]
    sizes: dict[str, Any]
    losses: Markup
    validation: Markup
    samples: str | None


def models(root: str, pictures: Pictures) -> list[Model]:
    """The newest ones."""
    return [_model(uri, pictures) for uri in finished(root)[-_SHOWN:][::-1]]


def _model(uri: str, pictures: Pictures) -> Model:
    plan = storage.read_json(storage.join(uri, PLAN))
    log = read_log(uri)
    steps = [line for line in log if is_step(line)]
    names = [name for name in dict.fromkeys(key for line in steps for key in line) if name not in NOT_LOSSES]
    validated = [line for line in log if "val" in line]
    held_out = dict.fromkeys(key for line in validated for key in line["val"])
    return Model(
        uri.rstrip("/").rsplit("/", 1)[-1],
        plan.get("stage"),
        storage.read_json(storage.join(uri, DONE)),
        plan["config"]["model"],
        curves({name: _points([(line["step"], line.get(name)) for line in steps]) for name in names}),
        curves({name: _points([(line["step"], line["val"].get(name)) for line in validated]) for name in held_out}),
        _samples(uri, pictures),
    )


def _points(pairs: list[tuple[int, Any]]) -> tuple[np.ndarray, np.ndarray]:
    known = [(step, value) for step, value in pairs if isinstance(value, int | float)]
    return np.array([step for step, _ in known], float), np.array([value for _, value in known], float)


def _samples(uri: str, pictures: Pictures) -> str | None:
    folder = storage.join(uri, "samples")
    names = sorted(name for name in storage.list_names(folder) if name.endswith(".png"))
    if not names:
        return None
    picture = Image.open(io.BytesIO(storage.read_bytes(storage.join(folder, names[-1])))).convert("RGB")
    picture.thumbnail((_SAMPLES_PX, _SAMPLES_PX))
    small = io.BytesIO()
    picture.save(small, "webp", quality=80)
    return pictures.file(small.getvalue(), "image/webp")
