"""`tokenmill eval model`: what is asked on, once; each model after the other; one table and one page."""

from typing import Any

import torch
from rich.console import Console

from tokenmill.pipeline.catalog.models import newest
from tokenmill.pipeline.catalog.tables import CatalogError
from tokenmill.pipeline.config import ConfigError, RunConfig
from tokenmill.pipeline.evaluation.ask import FEWEST, Judges, ask
from tokenmill.pipeline.evaluation.gather import EvalOptions, gather
from tokenmill.pipeline.evaluation.given import Codec, Given
from tokenmill.pipeline.evaluation.likeness import FEW, Clip, Features
from tokenmill.pipeline.evaluation.report import Found, show, write
from tokenmill.pipeline.evaluation.unseen import trained_on


def evaluate(config: RunConfig, options: EvalOptions, console: Console) -> dict[str, Any]:
    """Measure the newest model of each stage that is asked for; returns what eval.json holds.

    Raises CatalogError without such a model, ConfigError for files that cannot be used and where nothing can be
    measured, TokenizerLoadError, ClipLoadError.
    """
    uris = _models(config, options.stages)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    codec = Codec(config, device)
    clip = None if config.curate.clip.model is None else Clip(config.curate.clip.model, device)
    features = None if options.features is None else Features(options.features, device)
    known = trained_on(config.root, list(uris.values()))
    given = gather(config, options, codec, known, console)
    if not (given.prompts or given.held_out or given.questions):
        raise ConfigError(
            "nothing to measure on; " + " ".join(given.notes) + " give --pictures, --prompts or --questions"
        )
    pictures = [each.picture for each in given.held_out if each.picture is not None]
    is_compared = features is not None and len(pictures) >= FEWEST and bool(given.prompts)
    held_out = features.of(pictures) if features is not None and is_compared else None
    judges = Judges(codec, clip, features, held_out, options.seed)
    models = [ask(name, uri, given, config, judges, console) for name, uri in uris.items()]
    how = {
        "vision_tokenizer": config.tokenize.model,
        "clip": config.curate.clip.model,
        "features": options.features,
        "prompts": given.prompts_from,
        "sample": config.sample.model_dump(exclude={"resources"}),
    }
    notes = list(dict.fromkeys([*given.notes, *(note for model in models for note in model.notes)]))
    notes += _not_measured(options, given, len(pictures), is_compared, clip is not None)
    found = Found(models, given, options.seed, how, notes)
    write(found, options.out)
    show(found, options.out, console)
    return found.document()


def _models(config: RunConfig, names: tuple[str, ...]) -> dict[str, str]:
    """The folder of the newest model of each stage, by its name."""
    uris: dict[str, str] = {}
    for name in names or (config.train.last,):
        if name is not None and name not in config.train.stages:
            known = ", ".join(config.train.stages) or "none"
            raise ConfigError(f"--stage {name}: no such stage in train.stages; there are {known}")
        uri = newest(config.root, config.train, name)
        if uri is None:
            of = "" if name is None else f" of stage {name}"
            raise CatalogError(f"{config.root}: no trained model{of} yet; run `tokenmill train CONFIG` first")
        uris[name or "model"] = uri
    return uris


def _not_measured(
    options: EvalOptions, given: Given, num_pictures: int, is_compared: bool, has_clip: bool
) -> list[str]:
    """What is not in the table, and what to give for it; and what is to be known of what is."""
    notes: list[str] = []
    if given.prompts and not has_clip:
        notes.append("no CLIP likeness: name a model in curate.clip.model")
    if options.features is None and num_pictures and given.prompts:
        notes.append(
            "no FID, KID: pass --features, a CLIP model (hub name or folder) or the file of Inception's weights "
            "(weights-inception-2015-12-05-6726825d.pth)"
        )
    elif options.features is not None and not is_compared:
        notes.append(f"no FID, KID: they compare {FEWEST} or more held-out --pictures with as many drawings")
    elif is_compared and min(num_pictures, len(given.prompts)) < FEW:
        notes.append(
            f"FID of fewer than {FEW:,} pictures is too high, the more the fewer; compare it at equal numbers alone"
        )
    return notes
