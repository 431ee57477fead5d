"""`tokenmill demo`: draw a corpus, run every phase on it, draw captions that it never held, and leave two pictures.

The corpus (pipeline/demo/scenes.py) says in words exactly what its pictures show, so how well samples follow their
prompts is counted, not judged by eye: decode, classify colours and shapes by pixels (pipeline/demo/judge.py), compare
with the same pictures judged against other prompts, which is chance.
"""

import tempfile
import time
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from rich.console import Console

from tokenmill import storage
from tokenmill.pipeline.catalog.models import newest
from tokenmill.pipeline.catalog.tables import Catalog
from tokenmill.pipeline.config import RunConfig, load
from tokenmill.pipeline.demo.judge import Score, chance, judge, score
from tokenmill.pipeline.demo.scenes import Corpus, Scene, write_corpus
from tokenmill.pipeline.reports.draw import draw
from tokenmill.pipeline.reports.sheet import Picture, SheetSection, contact_sheet
from tokenmill.pipeline.reports.terminal import table
from tokenmill.pipeline.run.runner import run_phases
from tokenmill.stages import LoadFrames
from tokenmill.stages.table.columns import PLACES
from tokenmill.tokenizer.vision.vision_tokenizer import VisionTokenizer

CONFIG = Path(__file__).resolve().parents[2] / "configs" / "demo.yaml"
PHASES = ("curate", "caption", "tokenize", "train")
_NOTE = ".corpus.json"  # a hidden file: not listed as a medium
_SHOWN_PER_ROW = 8
_SHOWN_SAMPLES = 16
_STRIP_FRAMES = 4


def run_demo(path: Path | None, sets: list[str], num_images: int, console: Console) -> None:
    """The whole line on drawn scenes; leaves contact_sheet.png and loss.png under the root. Raises ConfigError."""
    start = time.monotonic()
    config = load(path or CONFIG, sets)
    corpus = make_corpus(config, num_images)
    console.print(
        f"Corpus: {corpus.num_images} drawn scenes, {corpus.num_videos} videos, {len(corpus.bad)} files broken on "
        f"purpose, in {config.sources[0].uri}",
        highlight=False,
    )
    run_phases(config, PHASES, "demo", console)
    samples = draw(config, [scene.caption for scene in corpus.held_out], list(range(len(corpus.held_out))))
    right = score([judge(image, scene) for image, scene in zip(samples, corpus.held_out, strict=True)])
    by_chance = chance(corpus.held_out, np.random.default_rng(0), list(samples))
    _print_score(console, right, by_chance)
    sections = [*_corpus_sections(config), _sample_section(samples, corpus.held_out)]
    sheet = _keep(config.root, "contact_sheet.png", lambda out: contact_sheet(sections, out))
    model = newest(config.root, config.train.what)
    curve = storage.join(model, "loss.png") if model else "no loss curve"
    console.print(f"Look at {sheet}\n    and {curve}\n{time.monotonic() - start:.0f} s in all.", highlight=False)


def make_corpus(config: RunConfig, num_images: int) -> Corpus:
    """The corpus at the config's first source: written there, or, when it stands there already, left alone."""
    uri = storage.absolute(config.sources[0].uri)
    note = storage.join(uri, _NOTE)
    if storage.exists(note):
        known = storage.read_json(note)
        if known["num_images"] == num_images:
            return Corpus(**known | {"held_out": tuple(Scene(**scene) for scene in known["held_out"])})
    with tempfile.TemporaryDirectory(prefix="tokenmill-") as folder:
        corpus = write_corpus(Path(folder), num_images)
        storage.upload_folder(Path(folder), uri)
    storage.write_json(note, asdict(corpus))  # last: its presence says that all is there
    return corpus


def _print_score(console: Console, right: Score, by_chance: Score) -> None:
    made = table(f"{right.num_pictures} captions never seen in training", "right", "samples#", "chance#")
    for name in ("colours", "shapes", "relations", "all_right"):
        values = (getattr(right, name), getattr(by_chance, name))
        made.add_row(name.replace("_", " "), *("-" if value is None else f"{value:.0%}" for value in values))
    console.print(made)


def _corpus_sections(config: RunConfig) -> list[SheetSection]:
    """Originals as the tokenizer saw them, their reconstructions, and a few clips as strips of frames."""
    catalog = Catalog(config.root)
    tokens = catalog.tokens.scan(where=pc.field("reject_reason").is_null()).sort_by("media_id")
    media = catalog.media.scan(PLACES.names)
    vision = VisionTokenizer.load(config.tokenize.model)
    images = tokens.filter(pc.equal(tokens["kind"], "image")).slice(0, _SHOWN_PER_ROW)
    clips = tokens.filter(pc.equal(tokens["kind"], "video")).slice(0, _SHOWN_PER_ROW // 2)
    originals, captions = _frames(config, media, images), images["caption"].to_pylist()
    rebuilt = [vision.decode_images(_codes(row)) for row in images.to_pylist()]
    made = [
        SheetSection("Originals", [Picture(o[0], c or "") for o, c in zip(originals, captions, strict=True)]),
        SheetSection("Reconstructed from their codes", [Picture(r[0], "") for r in rebuilt]),
    ]
    if clips.num_rows:
        decoded = [vision.decode_clips(_codes(row)[None])[0] for row in clips.to_pylist()]
        pairs = zip(_frames(config, media, clips), decoded, clips["caption"].to_pylist(), strict=True)
        strips = [Picture(np.concatenate([_strip(o), _strip(r)]), c or "") for o, r, c in pairs]
        made.append(SheetSection("Clips: original above, reconstruction below", strips))
    return made


def _codes(row: dict) -> np.ndarray:
    """(1, h, w) of an image, (t, h, w) of a clip."""
    return np.array(row["codes"], np.int64).reshape(row["grid_t"], row["grid_h"], row["grid_w"])


def _frames(config: RunConfig, media: pa.Table, tokens: pa.Table) -> list[np.ndarray]:
    """uint8 (T, H, W, 3) of each row, as the tokenizer got them."""
    at = pc.index_in(tokens["media_id"], value_set=media["media_id"].combine_chunks())
    rows = media.take(at).append_column("caption", tokens["caption"])
    loaded = LoadFrames(config.tokenize.frames, config.tokenize.model, config.fetched)(rows).to_pylist()
    shapes = [(row["frames_t"], row["frames_h"], row["frames_w"], 3) for row in loaded]
    return [np.frombuffer(row["frames"], np.uint8).reshape(shape) for row, shape in zip(loaded, shapes, strict=True)]


def _strip(frames_THWC: np.ndarray) -> np.ndarray:
    at = np.linspace(0, len(frames_THWC) - 1, _STRIP_FRAMES).round().astype(int)
    return np.concatenate(list(frames_THWC[at]), axis=1)


def _sample_section(samples: np.ndarray, scenes: tuple[Scene, ...]) -> SheetSection:
    pictures = [
        Picture(image, scene.caption, judge(image, scene).all_right)
        for image, scene in list(zip(samples, scenes, strict=True))[:_SHOWN_SAMPLES]
    ]
    return SheetSection("Samples for captions never seen in training", pictures)


def _keep(root: str, name: str, write) -> str:
    with tempfile.TemporaryDirectory(prefix="tokenmill-") as folder:
        local = Path(folder) / name
        write(local)
        uri = storage.join(storage.absolute(root), name)
        storage.write_bytes(uri, local.read_bytes())
    return uri
