"""Small models learn; a killed training goes on as if nothing had been; LoRA is merged; what cannot be is said."""

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import tiny_models
import torch
from transformers import AutoModelForImageTextToText, AutoProcessor

from tokenmill.stages.caption.engines.transformers_engine import TransformersEngine
from tokenmill.storage.errors import TrainingError
from tokenmill.training.captioner import loop
from tokenmill.training.captioner.answers import IGNORED, Answers
from tokenmill.training.captioner.config import CaptionerTrainConfig, CaptionerTrainResources
from tokenmill.training.captioner.loaded import load
from tokenmill.training.captioner.pairs import Example

PROMPT = "What is this?"
WORDS = ("dark", "bright")


class Greys:
    """Grey pictures, and whether they are dark."""

    def __init__(self, count: int):
        shades = np.linspace(0, 255, count).astype(np.uint8)
        self._all = [
            Example([np.full((32, 32, 3), shade, np.uint8)], PROMPT, f"a {WORDS[int(shade > 127)]} picture")
            for shade in shades
        ]

    def __len__(self) -> int:
        return len(self._all)

    def texts(self) -> Iterator[str]:
        yield from (PROMPT, *(each.caption for each in self._all))

    def load(self, number: int) -> Example | None:
        return self._all[number]


SCRATCH = {"image_px": 32, "patch_px": 8, "hidden_size": 32, "vision_layers": 1, "text_layers": 1, "vocab_size": 300}
RESOURCES = CaptionerTrainResources(batch=3, checkpoint_steps=2, held_out_steps=2)


OPTIMIZER = {"steps": 5, "batch": 6, "lr": 3e-3, "muon_lr": 0.02}


def config(optimizer=None, **more) -> CaptionerTrainConfig:
    base = {"scratch": SCRATCH, "optimizer": {**OPTIMIZER, **(optimizer or {})}, "dtype": "float32"}
    return CaptionerTrainConfig.model_validate({**base, **more})


def tuned(model: str, optimizer=None, **more) -> CaptionerTrainConfig:
    optimizer = {"muon_lr": None, "steps": 3, **(optimizer or {})}
    return config(optimizer, **{"scratch": None, "model": model, **more})


def train(made: CaptionerTrainConfig, out: Path, on_step=None, count: int = 12) -> str:
    return loop.train(made, RESOURCES, Greys(count), Greys(3), str(out), key="k", on_step=on_step)


def log(out: Path) -> list[dict]:
    return [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]


def weights(folder: str) -> dict[str, torch.Tensor]:
    return AutoModelForImageTextToText.from_pretrained(folder).state_dict()


class KilledError(Exception):
    pass


def test_a_killed_training_goes_on_bit_for_bit(tmp_path):
    whole = train(config(), tmp_path / "whole")

    def kill(record):
        if record["step"] == 3:
            raise KilledError

    with pytest.raises(KilledError):
        train(config(), tmp_path / "killed", kill)
    assert not (tmp_path / "killed" / "model").exists()
    steps = []
    again = train(config(), tmp_path / "killed", lambda record: steps.append(record["step"]))
    assert steps == [3, 4, 5], "from the checkpoint after step 2"
    assert log(tmp_path / "whole") == log(tmp_path / "killed")
    assert all(torch.equal(value, weights(again)[name]) for name, value in weights(whole).items())
    assert [step["step"] for step in log(tmp_path / "whole") if "held_out" in step] == [2, 4, 5]
    assert (tmp_path / "whole" / "loss.png").stat().st_size > 1000

    train(config(), tmp_path / "whole", lambda record: pytest.fail("trained again"))
    other = config(seed=1)
    assert any(not torch.equal(v, weights(whole)[k]) for k, v in weights(train(other, tmp_path / "o")).items())


def test_a_new_model_learns_what_it_is_shown(tmp_path):
    folder = train(config({"steps": 40, "lr": 0.02}), tmp_path, count=24)
    first, last = log(tmp_path)[0]["train"], log(tmp_path)[-1]["train"]
    assert first > 3 and last < 0.3
    processor = AutoProcessor.from_pretrained(folder)
    assert processor.tokenizer.decode(processor.tokenizer("Größe 7 €")["input_ids"]) == "Größe 7 €"


@pytest.fixture(scope="module", params=sorted(tiny_models.KINDS))
def kind(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> str:
    return tiny_models.save(request.param, tmp_path_factory.mktemp(request.param))


def test_inputs_are_what_the_engine_asks_and_targets_the_answer_alone(kind):
    """For every class of model, of one picture and of several, with prompts of different lengths."""
    from tokenmill.stages.caption.captioners.config import CaptionerConfig
    from tokenmill.stages.caption.engines.engine import Request

    model, processor = load(kind, torch.float32)
    end = processor.tokenizer.eos_token_id
    grey = Greys(2).load(0).pictures
    examples = [Example(grey, "Long words " * 5, "a dark picture"), Example([*grey, *grey], "Short", "one\nand two")]
    inputs, targets = Answers(processor, {end}, 64).encoded(examples)
    engine = TransformersEngine(CaptionerConfig.model_validate({"engine": "transformers", "model": kind}))
    for row, example in enumerate(examples):
        asked = engine._inputs([Request(example.pictures, example.prompt)])["input_ids"][0]
        assert torch.equal(inputs["input_ids"][row, : len(asked)], asked)
        assert (targets[row, : len(asked)] == IGNORED).all()
        answer = targets[row][targets[row] != IGNORED]
        assert answer[-1] == end and processor.tokenizer.decode(answer[:-1]) == example.caption
        length = len(asked) + len(answer)
        assert inputs["attention_mask"][row].tolist() == [1] * length + [0] * (targets.shape[1] - length)
        assert torch.equal(inputs["input_ids"][row, len(asked) : length], answer)
    assert model(**inputs).logits.shape[:2] == targets.shape


def test_an_answer_longer_than_allowed_has_no_end(kind):
    _, processor = load(kind, torch.float32)
    end = processor.tokenizer.eos_token_id
    assert end not in Answers(processor, {end}, 2).ids("a dark picture") != []
    assert Answers(processor, {end}, 64).ids("a dark picture")[-1] == end


def test_the_size_of_a_pass_changes_no_loss(tmp_path, kind):
    losses = []
    for size in (1, 6):
        made = RESOURCES.model_copy(update={"batch": size})
        loop.train(tuned(kind, {"steps": 1}), made, Greys(12), Greys(3), str(tmp_path / str(size)), key="k")
        losses.append(log(tmp_path / str(size))[0])
    assert losses[0]["train"] == pytest.approx(losses[1]["train"], rel=1e-4)
    assert losses[0]["held_out"] == pytest.approx(losses[1]["held_out"], rel=1e-3)


def test_lora_changes_its_modules_alone_and_is_merged(tmp_path):
    pytest.importorskip("peft")
    base = tiny_models.save("qwen3_vl", tmp_path / "base")
    lora = {"rank": 4, "modules": ["q_proj", "v_proj"], "dropout": 0.1}

    def kill(record):
        if record["step"] == 2:
            raise KilledError

    with pytest.raises(KilledError):
        train(tuned(base, {"lr": 0.01}, lora=lora), tmp_path / "out", kill)
    resumed = train(tuned(base, {"lr": 0.01}, lora=lora), tmp_path / "out")
    whole = train(tuned(base, {"lr": 0.01}, lora=lora), tmp_path / "whole")
    before, after = weights(base), weights(resumed)
    assert before.keys() == after.keys()
    assert all(torch.equal(value, weights(whole)[name]) for name, value in after.items())
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed and all("q_proj" in name or "v_proj" in name for name in changed)
    assert not list(Path(resumed).glob("adapter*"))
    with pytest.raises(TrainingError, match="lora.modules"):
        train(tuned(base, lora={"modules": ["no_such"]}), tmp_path / "none")


def test_without_its_library_lora_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setattr("tokenmill.training.config.find_spec", lambda name: None)
    with pytest.raises(TrainingError, match=r"captioner\.train\.lora needs peft: pip install tokenmill\[lora\]"):
        train(tuned("some/model", lora={}), tmp_path)


def test_what_cannot_be_trained_is_said(tmp_path):
    with pytest.raises(TrainingError, match="no pairs to train on"):
        loop.train(config(), RESOURCES, Greys(0), Greys(1), str(tmp_path), key="k")
    with pytest.raises(TrainingError, match="cannot be loaded"):
        train(tuned(str(tmp_path / "none")), tmp_path / "a")
    train(config({"steps": 2}), tmp_path / "b")
    (tmp_path / "b" / "done.json").unlink()
    with pytest.raises(TrainingError, match="of another config or of other pairs"):
        loop.train(config(), RESOURCES, Greys(9), Greys(3), str(tmp_path / "b"), key="another")

    class Gone(Greys):
        def load(self, number: int) -> None:
            return None

    with pytest.raises(TrainingError, match="none of its 6 media can be opened"):
        loop.train(config(), RESOURCES, Gone(9), Greys(3), str(tmp_path / "c"), key="k")


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"model": "a/b"}, "not both"),
        ({"lora": {}}, "lora learns beside given weights"),
        ({"optimizer": {"epochs": 1}}, "either steps or epochs"),
        ({"scratch": {"image_px": 60}}, "no multiple"),
    ],
)
def test_configs_that_contradict_themselves_are_refused(wrong, said):
    with pytest.raises(ValueError, match=said):
        config(**wrong)


def test_steps_come_from_epochs_where_none_are_given():
    assert config({"steps": None, "epochs": 2, "batch": 8}).optimizer.num_steps(100) == 25
    assert config({"steps": None, "batch": 8}).optimizer.num_steps(16) == 6  # three passes
    assert config({"steps": None, "batch": 8}).optimizer.num_steps(1) == 1
    assert config().optimizer.num_steps(100) == 5
