"""One model -> its figures, and what it drew and wrote: with the same prompts, seeds and media as every other."""

from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import numpy as np
import torch
from rich.console import Console

from tokenmill.pipeline.config import ConfigError, RunConfig
from tokenmill.pipeline.evaluation.given import Codec, Given
from tokenmill.pipeline.evaluation.likeness import Clip, Features, distance
from tokenmill.pipeline.reports.terminal import Meter, PhaseReport
from tokenmill.training.evaluation import words
from tokenmill.training.evaluation.subject import Subject
from tokenmill.training.sampling import Choice, Grid, Told

FEWEST = 4  # pictures of a FID and a KID
_AT_ONCE = 64  # drawings that are made and decoded together


@dataclass(frozen=True)
class Judges:
    """What stays the same for all models. `held_out`: features of the held-out pictures, null without an extractor."""

    codec: Codec
    clip: Clip | None
    features: Features | None
    held_out: torch.Tensor | None
    seed: int


@dataclass
class Measured:
    """Of one model: figures by name, what they are of, and what it made of all that it was given."""

    name: str
    uri: str
    figures: dict[str, float] = field(default_factory=dict)
    of: dict[str, str] = field(default_factory=dict)
    drawn: list[np.ndarray] = field(default_factory=list)  # uint8 (H, W, 3), one a prompt
    captions: list[str] = field(default_factory=list)  # one for each held-out medium, in their order
    answers: list[str] = field(default_factory=list)  # one a question
    notes: list[str] = field(default_factory=list)

    def tell(self, name: str, value: float, of: str) -> None:
        """A figure, and what it is of."""
        self.figures[name], self.of[name] = value, of


def ask(name: str, uri: str, given: Given, config: RunConfig, judges: Judges, console: Console) -> Measured:
    """All figures of the model in the folder `uri`. Raises ConfigError for one of another vision tokenizer,
    DoesNotFitError for what is longer than its context.
    """
    found, how = Measured(name, uri), config.sample
    subject = Subject(uri, judges.codec.device, how.resources.batch, how.resources.compile)
    if subject.codebook_size != judges.codec.codebook_size:
        raise ConfigError(
            f"tokenize.model {config.tokenize.model}: has {judges.codec.codebook_size} codes, the model {uri} was "
            f"trained on {subject.codebook_size}; name the tokenizer that it was trained with"
        )
    if given.held_out:
        _measure_losses(subject, found, given, console)
    if given.prompts:
        found.drawn = _drawn(subject, found.name, given.prompts, config, judges, console)
        _judge_drawings(found, given.prompts, judges)
    writing = judges.seed, Choice(how.top_k, how.top_p, how.text_temperature), how.max_tokens
    if media := given.media:
        with _told(f"{name} describes", console) as told:
            found.captions = subject.caption([each.document for each in media], *writing, told)
        _judge_captions(found, [each.caption for each in media])
    if questions := [each.question for each in given.questions]:
        with _told(f"{name} answers", console) as told:
            found.answers = subject.answer(questions, *writing, told)
        right = [words.is_right(said, each.true) for said, each in zip(found.answers, questions, strict=True)]
        found.tell("exact match", float(np.mean(right)), f"{len(right)} questions")
    return found


def seeds_of(prompts: Sequence[str], seed: int) -> list[int]:
    """One each: `seed`, and one more each time that a prompt comes again."""
    before, seeds = Counter[str](), list[int]()
    for prompt in prompts:
        seeds.append(seed + before[prompt])
        before[prompt] += 1
    return seeds


def _measure_losses(subject: Subject, found: Measured, given: Given, console: Console) -> None:
    console.print(f"  {found.name}: loss of {len(given.held_out)} documents", highlight=False)
    by_name, num_long = subject.losses([each.document for each in given.held_out])
    for what in sorted(by_name):
        loss = by_name[what]
        found.tell(f"loss {what}", loss.mean, f"{loss.num_tokens:,} tokens of {loss.num_documents}")
    if num_long:
        found.notes.append(f"{found.name}: {num_long} held-out media are longer than its context and count in no loss")


def _drawn(
    subject: Subject, name: str, prompts: list[str], config: RunConfig, judges: Judges, console: Console
) -> list[np.ndarray]:
    how, seeds, drawn = config.sample, seeds_of(prompts, judges.seed), list[np.ndarray]()
    grid, choice = Grid(how.grid_h, how.grid_w), Choice(how.top_k, how.top_p, how.temperature, how.guidance)
    for first in range(0, len(prompts), _AT_ONCE):
        part = slice(first, first + _AT_ONCE)
        with _told(f"{name} draws", console) as told:
            codes = subject.draw(prompts[part], seeds[part], grid, choice, told)
        drawn += judges.codec.pixels(codes)
        console.print(f"  {name}: {len(drawn)}/{len(prompts)} pictures drawn", highlight=False)
    return drawn


def _judge_drawings(found: Measured, prompts: list[str], judges: Judges) -> None:
    if judges.clip is not None:
        found.tell("CLIP likeness", judges.clip.likeness(found.drawn, prompts), f"{len(prompts)} drawings")
    if judges.features is not None and judges.held_out is not None and len(found.drawn) >= FEWEST:
        between = distance(judges.held_out, judges.features.of(found.drawn), judges.seed)
        of = f"{len(found.drawn)} drawings, {len(judges.held_out)} pictures"
        found.tell("FID", between.fid, of)
        found.tell("KID", between.kid, f"{of}; subsets of {between.subset}")
        found.tell("KID deviation", between.kid_deviation, f"between {between.num_subsets} subsets")


def _judge_captions(found: Measured, true: list[str | None]) -> None:
    pairs = [(said, text) for said, text in zip(found.captions, true, strict=True) if text and text.strip()]
    if not pairs:
        return
    said, texts = [each for each, _ in pairs], [text for _, text in pairs]
    found.tell("BLEU-4", words.bleu(said, texts), f"{len(pairs)} captions")
    if words.has_cider():
        found.tell("CIDEr-D", words.cider(said, texts), f"{len(pairs)} captions")
    else:
        found.notes.append(f"no CIDEr-D: it {words.NO_CIDER}")


@contextmanager
def _told(what: str, console: Console) -> Iterator[Told]:
    with Meter(console, PhaseReport(what), 0, "tokens") as meter:

        def told(done: int, total: int) -> None:
            meter.total = total
            meter.at(done, "")

        yield told
