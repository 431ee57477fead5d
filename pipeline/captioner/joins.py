"""Examples of captions put together -> the pairs of a training that looks at nothing.

So CapsFusion's model was made (arXiv 2310.20550, section 3): a large model put a million web and synthetic captions
together, and a small one learned it from them.
"""

import json
from collections.abc import Iterator
from typing import Any

import pyarrow as pa

from tokenmill import stages, storage
from tokenmill.pipeline.captioner.pairs import CAPTION
from tokenmill.pipeline.config import ConfigError
from tokenmill.storage.identity import content_id, fingerprint_of
from tokenmill.training.captioner.config import CaptionerTrainConfig
from tokenmill.training.captioner.pairs import Example

_KEYS = ("captions", "metadata", "caption")
_SLOTS = {"captions", "metadata"}
_COLUMNS = pa.schema([(name, pa.string()) for name in ("media_id", "read", "metadata", CAPTION)])


class Joins:
    """Examples as pairs without pictures, rows of `examples_of`."""

    def __init__(self, config: CaptionerTrainConfig, rows: pa.Table):
        self.rows = rows
        self.left_out: dict[str, int] = {}
        self._prompt = prompt_of(config)

    def __len__(self) -> int:
        return self.rows.num_rows

    def texts(self) -> Iterator[str]:
        """All prompts, then all captions in order."""
        rows = self.rows.to_pylist()
        yield from map(self._asked, rows)
        yield from (row[CAPTION] for row in rows)

    def load(self, number: int) -> Example:
        """The pair."""
        (row,) = self.rows.slice(number, 1).to_pylist()
        return Example([], self._asked(row), row[CAPTION])

    def _asked(self, row: dict[str, Any]) -> str:
        return self._prompt.filled({**row, "source_caption": None})


def prompt_of(config: CaptionerTrainConfig) -> stages.Prompt:
    """What is asked. Raises PromptError, and ConfigError for a prompt that shows no captions."""
    prompt = stages.load_prompt(config.ask.prompt)
    if "captions" not in prompt.slots or prompt.slots - _SLOTS:
        raise ConfigError(
            f"captioner.train.ask.prompt={config.ask.prompt}: to put captions together it must hold {{captions}}, and "
            "may hold {metadata}, nothing else; take consolidate"
        )
    return prompt


def examples_of(uri: str) -> pa.Table:
    """Rows of a file of examples: `media_id`, by what stands in it, `read` and `metadata` as the phase caption has
    them, and CAPTION. Equal inputs are one row, that of the last line. Raises ConfigError, with the line's number.
    """
    found: dict[str, dict[str, str | None]] = {}
    try:
        lines = storage.read_bytes(storage.absolute(uri)).splitlines()
    except OSError as error:
        raise ConfigError(
            f"captioner.train.joins={uri}: cannot be read ({error}); pass the path of a .jsonl"
        ) from error
    for number, line in enumerate(lines, 1):
        if line.strip():
            row = _row(line, f"{uri}, line {number}")
            found[str(row["media_id"])] = row
    if not found:
        raise ConfigError(
            f"captioner.train.joins={uri}: no line in it; write {{captions: {{NAME: TEXT}}, caption: TEXT}}"
        )
    return pa.Table.from_pylist(list(found.values()), _COLUMNS)


def identity(config: CaptionerTrainConfig, rows: pa.Table) -> str:
    """Of all that such a training hangs on: config, the prompt's text, first weights, examples."""
    ask = config.ask.model_copy(update={"prompt": prompt_of(config).identity})
    model = None if config.model is None else stages.model_identity(config.model)
    what = config.model_copy(update={"ask": ask, "model": model, "joins": None})
    return fingerprint_of("joins", what, [rows[name].to_pylist() for name in _COLUMNS.names])


def _row(line: bytes, where: str) -> dict[str, str | None]:
    try:
        example = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{where}: no JSON ({error}); mend or delete the line") from error
    captions = example.get("captions") if isinstance(example, dict) else None
    texts = [*captions.values(), example.get("caption")] if isinstance(captions, dict) else []
    if not isinstance(captions, dict) or len(texts) < 2 or not all(isinstance(t, str) and t.strip() for t in texts):
        raise ConfigError(f"{where}: needs captions, {{NAME: TEXT}}, and caption, a text; mend or delete the line")
    if unknown := sorted(example.keys() - set(_KEYS)):
        raise ConfigError(f"{where}: unknown key {unknown[0]!r}; known: {', '.join(_KEYS)}")
    read = json.dumps({name: stages.tidy(text) for name, text in captions.items()}, ensure_ascii=False)
    metadata = None if "metadata" not in example else json.dumps(example["metadata"], sort_keys=True)
    told = f"{read}\n{metadata}".encode("utf-8", "surrogatepass")
    answer = stages.tidy(example["caption"])
    return {"media_id": content_id([told]), "read": read, "metadata": metadata, CAPTION: answer}
