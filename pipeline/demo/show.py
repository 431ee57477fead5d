"""`tokenmill demo`: draw a corpus, train a captioner, run every phase, draw captions that it never held, and leave two
pictures.

A quarter of the scenes have their captions; a captioner learns from these and writes those of the others. Of a few a
web page says more than can be seen, and a language model joins that with what was written. The corpus
(pipeline/demo/scenes.py) says in words exactly what its pictures show, so how well samples follow their prompts is
counted, not judged by eye: decode, classify colours and shapes by pixels (pipeline/demo/judge.py), compare with the
same pictures judged against other prompts, which is chance.
"""

import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pyarrow.compute as pc
import yaml
from rich.console import Console

from tokenmill import storage
from tokenmill.pipeline.catalog.models import newest
from tokenmill.pipeline.catalog.tables import Catalog
from tokenmill.pipeline.config import RunConfig, load
from tokenmill.pipeline.demo import captions, joins, pictures, questions
from tokenmill.pipeline.demo.judge import Score, chance, judge, score
from tokenmill.pipeline.demo.scenes import PARTS, Corpus, Scene, write_corpus
from tokenmill.pipeline.reports.sheet import Picture, SheetSection, contact_sheet
from tokenmill.pipeline.reports.terminal import table
from tokenmill.pipeline.reports.trained import TrainedModel
from tokenmill.pipeline.run.runner import run_phases

CONFIG = Path(__file__).resolve().parents[2] / "configs" / "demo.yaml"
PHASES = ("curate", "caption", "tokenize", "train")
_CAPTIONED_CONFIG = "demo.yaml"  # under the root: the config with the captioner that was trained
_NOTE = ".corpus.json"  # a hidden file: not listed as a medium
_SHOWN_SAMPLES = 16


def run_demo(path: Path | None, sets: list[str], num_images: int, console: Console) -> None:
    """The whole line on drawn scenes; leaves contact_sheet.png and loss.png under the root. Raises ConfigError."""
    start = time.monotonic()
    config = load(path or CONFIG, sets)
    corpus = make_corpus(config, num_images)
    if corpus.joined:
        config = joins.with_the_web(config)
    console.print(
        f"Corpus: {corpus.num_images} drawn scenes, {len(corpus.hidden)} of them without their captions, "
        f"{corpus.num_videos} videos, {len(corpus.bad)} files broken on purpose, in {config.sources[0].uri}",
        highlight=False,
    )
    with _captioned(config, corpus, console) as config:
        run_phases(config, PHASES, "demo", console)
    prompts = [scene.caption for scene in corpus.held_out]
    samples = np.stack(TrainedModel(config).draw(prompts, range(len(prompts))))
    right = score([judge(image, scene) for image, scene in zip(samples, corpus.held_out, strict=True)])
    by_chance = chance(corpus.held_out, np.random.default_rng(0), list(samples))
    _print_score(console, right, by_chance)
    sections = [*_corpus(config), *_captions(config, corpus, console), _sample_section(samples, corpus.held_out)]
    sheet = _keep(config.root, "contact_sheet.png", lambda out: contact_sheet(sections, out))
    model = newest(config.root, config.train)
    curve = storage.join(model, "loss.png") if model else "no loss curve"
    console.print(f"Look at {sheet}\n    and {curve}\n{time.monotonic() - start:.0f} s in all.", highlight=False)


@contextmanager
def _captioned(config: RunConfig, corpus: Corpus, console: Console) -> Iterator[RunConfig]:
    """The config with a captioner that learned from the captions there are, where some are hidden, and with one that
    joins what it writes with what web pages say.
    """
    if not corpus.hidden:
        yield config
        return
    true = list(captions.true_captions(corpus.num_images).values())
    with (
        captions.with_own_captioner(config, console) as looking,
        joins.with_joiner(looking, captions.OWN, true, console) as captioned,
    ):
        document = captioned.model_dump(mode="json", exclude_unset=True)
        uri = storage.join(storage.absolute(config.root), _CAPTIONED_CONFIG)
        storage.write_bytes(uri, yaml.safe_dump(document, sort_keys=False).encode())
        yield captioned


def _captions(config: RunConfig, corpus: Corpus, console: Console) -> list[SheetSection]:
    """How many captions the captioner wrote right, and a few scenes with theirs."""
    if not corpus.hidden:
        return []
    written, joined = (captions.written_captions(config.root, name) for name in (captions.OWN, joins.JOINED))
    true = captions.true_captions(corpus.num_images)
    found = {captions.OWN: captions.judge_captions(written, true)}
    found[joins.JOINED] = captions.judge_captions(joined, corpus.joined)
    captions.print_captions(found, console)
    catalog = Catalog(config.root)
    columns = [*pictures.MEDIA_COLUMNS, "metadata"]
    media = catalog.media.scan(columns, pc.field("kind") == "image")
    names = captions.scenes(catalog)
    return [
        pictures.caption_section(config, media, names, written, true),
        pictures.joined_section(config, media, names, written, joined, corpus.joined),
    ]


def make_corpus(config: RunConfig, num_images: int) -> Corpus:
    """The corpus at the config's first source: written there, or, when it stands there already, left alone."""
    uri = storage.absolute(config.sources[0].uri)
    note = storage.join(uri, _NOTE)
    if storage.exists(note):
        known = storage.read_json(note)
        has_all = "joined" in known and storage.exists(storage.join(uri, questions.NAME))
        if known["num_images"] == num_images and has_all:
            return Corpus(**known | {"held_out": tuple(Scene(**scene) for scene in known["held_out"])})
        for part in PARTS:  # another corpus of ours
            if storage.exists(storage.join(uri, part)):
                storage.delete_folder(storage.join(uri, part))
    with tempfile.TemporaryDirectory(prefix="tokenmill-") as folder:
        corpus = write_corpus(Path(folder), num_images)
        questions.write_questions(Path(folder), num_images)
        if num_images >= captions.LEAST_TO_HIDE:
            hidden = captions.hide_captions(Path(folder))
            joined = joins.pack_of_the_web(Path(folder), hidden, captions.true_captions(num_images))
            corpus = replace(corpus, hidden=tuple(sorted(hidden)), joined=joined)
        storage.upload_folder(Path(folder), uri)
    storage.write_json(note, asdict(corpus))  # last: its presence says that all is there
    return corpus


def _print_score(console: Console, right: Score, by_chance: Score) -> None:
    made = table(f"{right.num_pictures} captions never seen in training", "right", "samples#", "chance#")
    for name in ("colours", "shapes", "relations", "all_right"):
        values = (getattr(right, name), getattr(by_chance, name))
        made.add_row(name.replace("_", " "), *("-" if value is None else f"{value:.0%}" for value in values))
    console.print(made)


def _corpus(config: RunConfig) -> list[SheetSection]:
    catalog = Catalog(config.root)
    tokens = catalog.tokens.scan(where=pc.field("reject_reason").is_null()).sort_by("media_id")
    return pictures.corpus_sections(config, catalog.media.scan(pictures.MEDIA_COLUMNS), tokens)


def _sample_section(samples: np.ndarray, scenes: tuple[Scene, ...]) -> SheetSection:
    shown = [
        Picture(image, scene.caption, judge(image, scene).all_right)
        for image, scene in list(zip(samples, scenes, strict=True))[:_SHOWN_SAMPLES]
    ]
    return SheetSection("Samples for captions never seen in training", shown)


def _keep(root: str, name: str, write) -> str:
    with tempfile.TemporaryDirectory(prefix="tokenmill-") as folder:
        local = Path(folder) / name
        write(local)
        uri = storage.join(storage.absolute(root), name)
        storage.write_bytes(uri, local.read_bytes())
    return uri
