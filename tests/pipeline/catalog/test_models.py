"""Where a training stands: with dtype auto what was finished or begun with one dtype is found on another machine."""

import pytest

from tokenmill import storage
from tokenmill.pipeline.catalog import models
from tokenmill.pipeline.config import RunConfig
from tokenmill.pipeline.phases import Train
from tokenmill.pipeline.refresh.fingerprints import standing_tokens
from tokenmill.storage import cpu
from tokenmill.training.config import OptimizerConfig, TrainConfig
from tokenmill.training.job import DONE, PLAN

AUTO = TrainConfig(optimizer=OptimizerConfig(steps=3))
PLACE = models.Place(3)


def with_dtype(dtype: str) -> TrainConfig:
    return AUTO.model_copy(update={"dtype": dtype})


@pytest.fixture(params=[True, False], ids=["bf16 units", "none"])
def has_units(request, monkeypatch) -> bool:
    monkeypatch.setattr(cpu, "multiplies_bf16", lambda: request.param)
    return request.param


def test_auto_goes_on_with_what_is_there(tmp_path, has_units):
    root = str(tmp_path)

    def chosen() -> str:
        return models.with_dtype(root, AUTO, PLACE, on_gpu=False).dtype

    assert chosen() == ("bfloat16" if has_units else "float32")
    begun, done = ("float32", "bfloat16") if has_units else ("bfloat16", "float32")
    storage.write_json(storage.join(PLACE.uri(root, with_dtype(begun)), PLAN), {})
    assert chosen() == begun, "a training that was begun on another machine goes on"
    assert models.newest(root, Train(**dict(AUTO))) is None
    storage.write_json(storage.join(PLACE.uri(root, with_dtype(done)), DONE), {})
    assert chosen() == done, "a finished one is not trained anew"
    assert models.newest(root, Train(**dict(AUTO))) == PLACE.uri(root, with_dtype(done))
    assert models.with_dtype(root, with_dtype(begun), PLACE, False).dtype == begun, "a dtype by name is that one"
    assert models.newest(root, Train(**dict(with_dtype(begun)))) is None


def test_token_rows_of_any_dtype_stand_for_auto(has_units):
    def fingerprints(dtype: str) -> list[str]:
        part = {"dtype": dtype}
        return standing_tokens(RunConfig.model_validate({"root": "r", "sources": [{"uri": "s"}], "tokenize": part}))

    (fp32,), (bf16,), (fp16,) = fingerprints("float32"), fingerprints("bfloat16"), fingerprints("float16")
    auto = fingerprints("auto")
    assert auto[0] == (bf16 if has_units else fp32) and set(auto) == {fp32, bf16, fp16}
