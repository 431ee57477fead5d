"""Engine `transformers` on small saved models of the real classes."""

from pathlib import Path

import numpy as np
import pytest
import tiny_models

from tokenmill.stages.caption.captioners.config import CaptionerConfig, CaptionError, model_identity
from tokenmill.stages.caption.engines.engine import Answer, Request, Result
from tokenmill.stages.caption.engines.transformers_engine import TransformersEngine
from tokenmill.stages.table.rows import RowError


@pytest.fixture(scope="module", params=tiny_models.KINDS)
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> str:
    return tiny_models.save(request.param, tmp_path_factory.mktemp(request.param))


@pytest.fixture(scope="module")
def qwen(tmp_path_factory: pytest.TempPathFactory) -> str:
    return tiny_models.save("qwen2_5_vl", tmp_path_factory.mktemp("qwen"))


def run(model: str, requests: list[Request], batch: int = 4, **sampling: float) -> list[Result]:
    config = {"engine": "transformers", "model": model, "sampling": {"max_tokens": 8, **sampling}, "dtype": "float32"}
    engine = TransformersEngine(CaptionerConfig.model_validate({**config, "resources": {"batch": batch}}))
    found = dict(engine.answers(iter(enumerate(requests))))
    assert all(each.seconds > 0 for each in found.values() if isinstance(each, Answer))
    return [each._replace(seconds=None) if isinstance(each, Answer) else each for _, each in sorted(found.items())]


@pytest.mark.parametrize("kind", ["language model", "qwen2_5_vl"])
def test_captions_are_put_together_by_text_alone(kind, qwen, tmp_path):
    name = qwen if kind in tiny_models.KINDS else tiny_models.save_language_model(tmp_path)
    asked = {"reads": ["source", "long"], "prompt": "consolidate", "sampling": {"max_tokens": 8}, "dtype": "float32"}
    engine = TransformersEngine(CaptionerConfig.model_validate({"engine": "transformers", "model": name, **asked}))
    requests = [Request([], "join " * (i + 1)) for i in range(3)]
    found = [result for _, result in sorted(engine.answers(iter(enumerate(requests))))]
    assert all(isinstance(each, Answer) and 0 < each.tokens_out <= 8 for each in found)
    assert found[0].tokens_in < found[1].tokens_in < found[2].tokens_in


def picture(seed: int, height: int = 50, width: int = 70) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def test_images_and_clips_in_batches_get_the_answers_that_they_get_alone(model):
    requests = [Request([picture(i, 40 + 9 * i)], "Describe" + " more" * i) for i in range(4)]
    requests.append(Request([picture(9 + i) for i in range(12)], "Describe"))
    together = run(model, requests)
    assert together == run(model, requests, batch=1)
    assert all(
        isinstance(each, Answer) and each.tokens_out is not None and 1 <= each.tokens_out <= 8 for each in together
    )
    assert len({each.text for each in together if isinstance(each, Answer)}) > 1
    assert all(each.finish_reason == "length" for each in together if isinstance(each, Answer) and each.tokens_out == 8)


@pytest.mark.parametrize(
    ("kind", "prompts"),
    [
        ("blip_2", ["a picture of", "Question: what is it? Answer:"]),
        ("florence2", ["<CAPTION>", "<MORE_DETAILED_CAPTION>"]),
    ],
)
def test_models_without_a_chat_template_take_one_picture_and_the_prompt_as_it_is(kind, prompts, tmp_path):
    model = tiny_models.save(kind, tmp_path)
    requests = [Request([picture(i, 40 + 9 * i)], prompts[i % 2]) for i in range(4)]
    clip = Request([picture(9), picture(10)], prompts[0])
    *together, refused = run(model, [*requests, clip])
    assert together == run(model, requests, batch=1)
    assert all(isinstance(each, Answer) and 1 <= each.tokens_out <= 8 for each in together)
    assert len({each.text for each in together}) > 1 and not any(prompts[0] in each.text for each in together)
    assert isinstance(refused, RowError) and "takes one picture, and not 2" in refused.columns["reject_detail"]


def test_a_picture_that_the_processor_refuses_is_rejected_alone(qwen):
    results = run(qwen, [Request([picture(1)], "a"), Request([picture(2, 2, 900)], "b"), Request([picture(3)], "c")])
    assert isinstance(results[1], RowError) and results[1].columns["reject_reason"] == "bad_picture"
    assert isinstance(results[0], Answer) and isinstance(results[2], Answer)


def test_sampling_is_repeated_by_its_seed(qwen):
    requests = [Request([picture(1)], "Describe")]
    first, again = (run(qwen, requests, temperature=2.0, seed=5) for _ in range(2))
    assert first == again != run(qwen, requests, temperature=2.0, seed=6)


def test_what_cannot_be_loaded_says_what_to_pass(tmp_path, qwen):
    with pytest.raises(CaptionError, match="no such folder; pass as the captioner's `model` a hub name"):
        model_identity(str(tmp_path / "none"))
    with pytest.raises(CaptionError, match="no .safetensors file; save the model with save_pretrained"):
        model_identity(str(tmp_path))
    for path in Path(qwen).iterdir():
        if "template" not in path.name:
            (tmp_path / path.name).write_bytes(path.read_bytes())
    assert model_identity(str(tmp_path)) != model_identity(qwen)  # the chat template is part of what a model writes
    with pytest.raises(CaptionError, match="no chat template"):
        run(str(tmp_path), [])
    for path in tmp_path.glob("*processor*"):
        path.unlink()
    with pytest.raises(CaptionError, match="cannot be loaded"):
        run(str(tmp_path), [])
