"""What was found of each model -> one table, eval.json, and eval.png to look at."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console

from tokenmill import storage
from tokenmill.pipeline.catalog.models import version_of
from tokenmill.pipeline.evaluation.ask import Measured, seeds_of
from tokenmill.pipeline.evaluation.given import Given
from tokenmill.pipeline.reports.sheet import Picture, SheetSection, contact_sheet
from tokenmill.pipeline.reports.terminal import table
from tokenmill.training.evaluation import words
from tokenmill.training.job import name_of

_SHOWN = 8  # of a kind on the page
_FORMS = {"loss": ".4f", "CLIP": ".4f", "FID": ".4g", "KID": ".4g", "BLEU-4": ".4f", "CIDEr-D": ".3f", "exact": ".1%"}


@dataclass
class Found:
    """Of all models, and what they were asked. `how`: seed, vision tokenizer, models that judged."""

    models: list[Measured]
    given: Given
    seed: int
    how: dict[str, Any]
    notes: list[str] = field(default_factory=list)

    @property
    def measures(self) -> list[tuple[str, str]]:
        """Name, and what it is of, in the order of the first model that has it."""
        return list({name: of for model in self.models for name, of in model.of.items()}.items())

    def document(self) -> dict[str, Any]:
        """All numbers, for eval.json."""
        given = self.given
        return {
            "how": self.how | {"seed": self.seed},
            "models": {
                model.name: {"training": name_of(model.uri), "tokens_version": version_of(name_of(model.uri))}
                for model in self.models
            },
            "held_out": given.held_out_from,
            "measures": {
                name: {"of": of, "values": {each.name: each.figures.get(name) for each in self.models}}
                for name, of in self.measures
            },
            "notes": self.notes,
            "drawn": [
                {"prompt": prompt, "seed": seed}
                for prompt, seed in zip(given.prompts, seeds_of(given.prompts, self.seed), strict=True)
            ],
            "captions": [
                {"name": each.name, "true": each.caption} | {"said": {m.name: m.captions[n] for m in self.models}}
                for n, each in enumerate(given.media)
            ],
            "answers": [
                {"name": each.seen and each.seen.name, "question": each.question.text, "true": each.question.true}
                | {"said": {m.name: m.answers[n] for m in self.models}}
                for n, each in enumerate(given.questions)
            ],
        }


def write(found: Found, out: Path) -> None:
    """eval.json, and eval.png where there is anything to see; into `out`."""
    out.mkdir(parents=True, exist_ok=True)
    storage.write_json(str(out / "eval.json"), found.document())
    (out / "eval.png").unlink(missing_ok=True)
    sections = [section for section in _sections(found) if section.pictures]
    if sections:
        contact_sheet(sections, out / "eval.png")


def show(found: Found, out: Path, console: Console) -> None:
    """Print the table, the notes, and where to look."""
    made = table(f"Measured with seed {found.seed}", "measure", *(f"{each.name}#" for each in found.models), "of")
    for name, of in found.measures:
        form = _FORMS[name.split()[0]]
        values = [each.figures.get(name) for each in found.models]
        made.add_row(name, *("-" if value is None else format(value, form) for value in values), of)
    console.print(made)
    for note in found.notes:
        console.print(note, highlight=False)
    page = f"Look at {out / 'eval.png'}; " if (out / "eval.png").exists() else ""
    console.print(f"{page}all figures in {out / 'eval.json'}", highlight=False)


def _sections(found: Found) -> list[SheetSection]:
    """Drawings, a line for each model, in the order of the prompts; captions beside their pictures; answers."""
    given = found.given
    sections = [
        SheetSection(
            f"{model.name} draws, seed {found.seed}",
            [Picture(*each) for each in zip(model.drawn[:_SHOWN], given.prompts[:_SHOWN], strict=True)],
        )
        for model in found.models
    ]
    described = [
        Picture(each.picture, (f"true: {each.caption or '-'}", *(f"{m.name}: {m.captions[n]}" for m in found.models)))
        for n, each in enumerate(given.media)
        if each.picture is not None
    ]
    sections.append(SheetSection("Captions of held-out pictures", described[:_SHOWN]))
    for model in found.models:
        answered = [
            Picture(
                asked.seen.picture,
                (asked.question.text, f"{model.name}: {said}", f"true: {asked.question.true}"),
                words.is_right(said, asked.question.true),
            )
            for asked, said in zip(given.questions, model.answers, strict=True)
            if asked.seen is not None and asked.seen.picture is not None
        ]
        sections.append(SheetSection(f"{model.name} answers", answered[:_SHOWN]))
    return sections
