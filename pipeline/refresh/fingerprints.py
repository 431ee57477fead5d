"""Fingerprints: what rows of each phase are known by, so that done work is not done again.

Each is that of the parts of the config that change results, and of the models that its names stand for now.
"""

from importlib import metadata

from tokenmill import storage
from tokenmill.pipeline.config import RunConfig
from tokenmill.stages.select.duplicates import duplicates_fingerprints
from tokenmill.storage.cpu import DTYPES
from tokenmill.storage.identity import content_id, fingerprint_of
from tokenmill.tokenizer.vision import weights


def of_curate(config: RunConfig) -> str:
    """Of what is measured of every medium; rules are applied to stored scores, and a row says itself which of the
    expensive scorers it has seen (`scored`).
    """
    return fingerprint_of("curate", config.curate.read, config.curate.score, config.curate.split)


def of_captions(config: RunConfig) -> dict[str, list[str]]:
    """Those of each captioner in use and of `source`, which text documents have. Raises CaptionError, PromptError."""
    return {name: of_captioner(config, name) for name in dict.fromkeys(["source", *config.caption.order])}


def of_captioner(config: RunConfig, name: str) -> list[str]:
    """Of the rows that stand; new rows have the first. Raises CaptionError and PromptError."""
    part = config.caption.what
    found = [fingerprint_of("caption", part.all[name].identity)]
    if name == "source":  # until there were several captioners, how long a caption may be was part of it
        found.append(fingerprint_of("caption", {"captioner": "source", "max_caption_chars": part.max_caption_chars}))
    return found


def of_tokens(config: RunConfig) -> dict[str, str]:
    """Of the tokenizer's weights (by content, wherever they lie), the geometry of frames and a dtype; by dtype.

    Rows of all of them stand: with dtype auto of any dtype, so that a refresh on another machine computes nothing anew.
    New rows have that of `config.tokenize.new_dtype`.
    """
    part, identity = config.tokenize, weights.identity(config.tokenize.model)
    what = part.what.model_dump(exclude={"model"})
    dtypes = DTYPES if part.dtype == "auto" else (part.dtype,)
    return {dtype: fingerprint_of("tokenize", part.frames, what | {"dtype": dtype}, identity) for dtype in dtypes}


def standing_tokens(config: RunConfig) -> list[str]:
    """Fingerprints of the token rows that stand for this config; new rows have the first."""
    by_dtype = of_tokens(config)
    return [by_dtype.pop(config.tokenize.new_dtype), *by_dtype.values()]


def of_all(config: RunConfig) -> str:
    """Of all that a plan of curate, caption and tokenize hangs on, but for what sources and tables hold. Raises
    CaptionError, PromptError, and UserError for votes that cannot be read.
    """
    part, votes = config.curate, (config.curate.decide.votes, config.caption.votes)
    return fingerprint_of(
        "all",
        metadata.version("tokenmill"),
        content_id([config.model_dump_json(include={"sources", "curate", "caption", "tokenize"}).encode()]),
        [of_curate(config), *part.scorers, *duplicates_fingerprints(part.duplicates)],
        of_captions(config),
        standing_tokens(config),
        [None if uri is None else content_id([storage.read_bytes(storage.absolute(uri))]) for uri in votes],
    )


def codebook_size(config: RunConfig) -> int:
    """How many codes the config's vision tokenizer has."""
    return weights.codebook_size(config.tokenize.model)
