"""Scenes that a web page says something of, and a small language model that joins that with what was seen.

A page names who painted a picture and when, which nobody can see, under a title that is wrong about what it shows. So
a joined caption is right where it has the page's names and the scene's shapes, to the letter. The model learns it from
made-up pages and captions, as CapsFusion's learned it from another model's (arXiv 2310.20550).
"""

import io
import json
import tarfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console

from tokenmill import storage
from tokenmill.pipeline.captioner.judge import asked
from tokenmill.pipeline.captioner.train import train_captioner
from tokenmill.pipeline.config import RunConfig, Source
from tokenmill.pipeline.demo.scenes import COLOURS, SHAPES
from tokenmill.training.captioner.config import Captioner

JOINED = "joined"  # in caption.captioners
OF_THE_WEB = 48  # scenes
_WEB = "web"  # in the corpus
_EXAMPLES = "joins.jsonl"  # under the root
_NUM_EXAMPLES = 3000
_PROMPT = Path(__file__).resolve().parent / "join.md"
_PAINTERS = ("Ada", "Bela", "Chen", "Dora", "Emil", "Fatima", "Goran", "Hana", "Ivo", "Jun", "Kofi", "Lea")
_YEARS = (1950, 1980)
_BATCH = 64
_TRAINING: dict[str, Any] = {
    "train": {
        "scratch": {"hidden_size": 128, "text_layers": 2, "vocab_size": 512},
        "ask": {"max_tokens": 48},
        "optimizer": {"steps": 160, "batch": 32, "lr": 0.003, "muon_lr": 0.02, "weight_decay": 0.1},
    },
    "resources": {"num_workers": 2, "cpus_per_worker": 0.9, "threads": 1, "batch": 16, "judge_batch": 64},
}


def pack_of_the_web(folder: Path, hidden: set[str], captions: Mapping[str, str], seed: int = 0) -> dict[str, str]:
    """Move OF_THE_WEB of the scenes without captions from `folder`/images into a tar of their own, each with what its
    page says; returns the captions that joining must give, by the names of the files.
    """
    rng = np.random.default_rng([seed, 2])
    images, right = folder / "images", dict[str, str]()
    (folder / _WEB).mkdir()
    with tarfile.open(folder / _WEB / "scenes.tar", "w") as pack:
        for name in sorted(rng.permutation(sorted(hidden))[:OF_THE_WEB].tolist()):
            page, told = _page(rng)
            right[name] = f"{captions[name]}, {told}"
            pack.add(images / name, name)
            document = json.dumps(page).encode()
            member = tarfile.TarInfo(f"{Path(name).stem}.json")
            member.size = len(document)
            pack.addfile(member, io.BytesIO(document))
            (images / name).unlink()
    return right


def with_the_web(config: RunConfig) -> RunConfig:
    """The config with that tar as one more source."""
    pack = Source(uri=storage.join(config.sources[0].uri, _WEB), kind="webdataset")
    return config.model_copy(update={"sources": [*config.sources, pack]})


@contextmanager
def with_joiner(config: RunConfig, reads: str, captions: Sequence[str], console: Console) -> Iterator[RunConfig]:
    """Train a joiner on pages made up about `captions`; while inside, the config given has it as captioner JOINED, of
    media whose page says something and whose caption by `reads` counts. Raises what training it raises.
    """
    uri = storage.join(storage.absolute(config.root), _EXAMPLES)
    storage.write_bytes(uri, "".join(_examples(reads, captions)).encode())
    train = {**_TRAINING["train"], "joins": uri, "ask": {**_TRAINING["train"]["ask"], "prompt": str(_PROMPT)}}
    training = Captioner.model_validate({**_TRAINING, "train": train})
    folder = train_captioner(config.model_copy(update={"captioner": training}), console)
    with storage.local_folder(folder) as local:
        one = asked(training.train, str(local), _BATCH, (reads,))
        one = one.model_copy(update={"serves": "images", "where": "metadata != ''"})
        captioners = {**config.caption.captioners, JOINED: one}
        use = (JOINED, *config.caption.use)
        caption = config.caption.model_copy(update={"use": use, "captioners": captioners})
        yield config.model_copy(update={"caption": caption})


def _page(rng: np.random.Generator) -> tuple[dict[str, str], str]:
    """What a page says of a picture, and what of that belongs into its caption."""
    colour, shape = rng.choice(list(COLOURS)), rng.choice(SHAPES)
    painter, year = rng.choice(_PAINTERS), rng.integers(*_YEARS)
    title = f"{colour.capitalize()} {shape.capitalize()} No. {rng.integers(1, 10)}"
    return {"alt": f"{title} by {painter}, {year} | prints"}, f"by {painter}, {year}"


def _examples(reads: str, captions: Sequence[str], seed: int = 0) -> Iterator[str]:
    """Lines of `captioner.train.joins`."""
    rng = np.random.default_rng([seed, 3])
    for at in rng.integers(len(captions), size=_NUM_EXAMPLES):
        page, told = _page(rng)
        example = {"captions": {reads: captions[at]}, "metadata": page, "caption": f"{captions[at]}, {told}"}
        yield json.dumps(example) + "\n"
