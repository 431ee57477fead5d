"""A root with a finished training, made without training: random weights, folders as a run leaves them."""

from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from tokenmill import storage
from tokenmill.pipeline.catalog.models import Place
from tokenmill.pipeline.config import load
from tokenmill.pipeline.demo.show import CONFIG
from tokenmill.tokenizer.text import train_text_tokenizer
from tokenmill.tokenizer.vision.weights import codebook_size
from tokenmill.tokenizer.vocabulary import Vocabulary
from tokenmill.training.job import ANCESTORS, DONE, INPUTS, MODEL, PLAN
from tokenmill.training.model.model import build_model

TEXTS = ["a red circle left of a blue square", "what is it? a house"]
SIZES = {"hidden_size": 32, "num_layers": 1, "num_heads": 2, "num_kv_heads": 1, "intermediate_size": 48}
STAGES: dict[str, tuple[str, ...]] = {"stage1": ("image", "text"), "stage2": ("image", "text", "video")}


@pytest.fixture(scope="session")
def trained_config(tmp_path_factory: pytest.TempPathFactory) -> Callable[[], Path]:
    """The config of a root with two stages, of which the second was trained on clips; 8x8 codes, 300 tokens."""
    folder: Path = tmp_path_factory.mktemp("trained")
    document = yaml.safe_load(CONFIG.read_text()) | {"root": str(folder / "root"), "sources": [{"uri": "nowhere"}]}
    stages = {name: {"optimizer": {"steps": 10 + number}} for number, name in enumerate(STAGES)}
    document["train"] |= {"model": SIZES, "stages": stages, "dtype": "float32"}
    document["sample"] |= {"max_tokens": 8}
    path = folder / "mine.yaml"
    path.write_text(yaml.safe_dump(document))
    train, runs = load(path).train, list[tuple[str, list[str]]]()
    tokenizer = train_text_tokenizer(TEXTS, 300)
    vocabulary = Vocabulary.of(tokenizer, codebook_size("builtin"))
    for name, kinds in STAGES.items():
        inputs = [runs[0][0]] if runs else []
        place = Place(1, stage=name, inputs=tuple(inputs))
        uri = place.uri(str(folder / "root"), train.stages[name].what)
        model = Path(uri, MODEL)
        model.mkdir(parents=True)
        build_model(train.stages[name].model, vocabulary, 300, seed=0).save_pretrained(model)
        tokenizer.save_pretrained(model)
        vocabulary.save(model)
        storage.write_json(str(Path(uri, PLAN)), {INPUTS: inputs, ANCESTORS: runs})
        runs.insert(0, (Path(uri).name, inputs))
        storage.write_json(str(Path(uri, DONE)), {"losses": dict.fromkeys((*kinds, "loss"), 1.0)})
    return path
