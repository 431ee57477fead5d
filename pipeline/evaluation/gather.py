"""Options of the command -> what each model is given, and what is to be said of it."""

from dataclasses import dataclass
from pathlib import Path

from rich.console import Console

from tokenmill.pipeline.catalog.tables import Catalog
from tokenmill.pipeline.config import RunConfig
from tokenmill.pipeline.evaluation.given import Codec, Given
from tokenmill.pipeline.evaluation.held_out import from_catalog, from_folder
from tokenmill.pipeline.evaluation.questions import read_questions
from tokenmill.pipeline.evaluation.unseen import TrainedOn
from tokenmill.pipeline.preferences.drawings import read_prompts
from tokenmill.pipeline.refresh.fingerprints import of_tokens

_TOLD_EVERY = 64  # pictures


@dataclass(frozen=True)
class EvalOptions:
    """What is measured on: at most `n` of each; null: nothing of it. `features`: the extractor of FID and KID."""

    out: Path
    stages: tuple[str, ...] = ()
    prompts: Path | None = None
    pictures: Path | None = None
    questions: Path | None = None
    features: str | None = None
    n: int = 256
    seed: int = 0


def gather(config: RunConfig, options: EvalOptions, codec: Codec, known: TrainedOn, console: Console) -> Given:
    """Raises ConfigError, and TrainingError for lines that are no dialogue."""
    given, catalog = Given(), Catalog(config.root)
    if known.unknown:
        given.notes.append(
            f"not known what {', '.join(known.unknown)} learned from: it is not looked for in what is held out"
        )
    if options.pictures is not None:

        def told(done: int) -> None:
            if done % _TOLD_EVERY == 0:
                console.print(f"  {done} of at most {options.n} pictures read", highlight=False)

        given.held_out, left_out = from_folder(str(options.pictures), options.n, codec, known, told)
        given.held_out_from = str(options.pictures)
        if left_out:
            counts = ", ".join(f"{reason} {count}" for reason, count in sorted(left_out.items()))
            given.notes.append(f"of {options.pictures} left out: {counts}")
    elif catalog.exists():
        given.held_out, numbers = from_catalog(catalog, options.n, known, list(of_tokens(config).values()))
        which = ", ".join(f"{number} {what}" for what, number in numbers.items())
        given.held_out_from = f"tokens version {catalog.tokens.version}, rows that no model was trained on: {which}"
    if not given.held_out:
        given.notes.append(
            "no loss and no captions: nothing is held out, for the models were trained on all that there is "
            "(train.data.held_out keeps a share);"
            if options.pictures is None
            else f"no loss and no captions: nothing of {options.pictures} is held out;"
        )
    if options.prompts is not None:
        given.prompts, given.prompts_from = read_prompts(options.prompts)[: options.n], str(options.prompts)
    else:
        given.prompts = [each.caption for each in given.held_out if each.caption and each.document.modality == "image"]
        given.prompts_from = "captions of held-out pictures"
    if options.questions is not None:
        given.questions, num = read_questions(options.questions, options.n, codec, catalog, known)
        if num:
            given.notes.append(f"{num} of {len(given.questions)} questions are about media that models were trained on")
    return given
