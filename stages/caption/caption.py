"""Caption kept media: one row per medium -> its caption, or null where there is none.

Two captioners need no model: `source`, the file's own caption, and `none`. All others are models of `captioners` in the
config, behind an engine (engine.py). What an engine did not ask before it stopped comes out as a row that only says so
(`KNOWN`): it becomes no row of the table, its `reject_detail` tells the conductor why, and the next run asks it.
"""

import re
from collections.abc import Iterator
from typing import Any

import pyarrow as pa

from tokenmill.stages.caption.checks import check
from tokenmill.stages.caption.config import CaptionConfig, CaptionerConfig
from tokenmill.stages.caption.engine import Engine, Request, Result
from tokenmill.stages.caption.journal import Journal, key_of
from tokenmill.stages.caption.pictures import Pictures
from tokenmill.stages.caption.prompts import load_prompt
from tokenmill.stages.table import limits
from tokenmill.stages.table.columns import CAPTIONS, KNOWN, TO_CAPTION
from tokenmill.stages.table.rows import RowError, pick, replace, values_of
from tokenmill.stages.table.text import clean

_MADE = ("caption", "captioner", "finish_reason", "tokens_in", "tokens_out", "reject_reason", "reject_detail")


def tidy(text: str | None, max_chars: int) -> str | None:
    """`text` on one line without control characters, cut at the last word that fits; null when nothing is left."""
    line = re.sub(r"[\s\x00-\x1f\x7f-\x9f]+", " ", text or "").strip()
    if len(line) > max_chars:
        # One character more, so that a word that ends exactly at the limit stays.
        line = line[: max_chars + 1].rpartition(" ")[0] or line[:max_chars]
    return line or None


class Caption:
    """Kept media -> `caption` and `captioner`; of a model also finish_reason, tokens_in and tokens_out. Costs what the
    captioner costs. A missing caption rejects nothing, an answer that is no caption is rejected (checks.py).

    The caption of a text document is the document, whole, whichever captioner is chosen. `share`: the part of the run's
    budget that this worker may spend; `answers`: where they are kept until they are committed (journal.py).
    """

    reads = TO_CAPTION
    writes = pick(CAPTIONS, *_MADE)
    drops = tuple(name for name in TO_CAPTION.names if name != "media_id")
    rows = "same"

    def __init__(
        self, config: CaptionConfig, fetched: str = "", share: float = 1.0, answers: str = "", run_id: str = ""
    ):
        self._config, active = config, config.active
        made = None if active is None else _engine(config.captioner, active, share, run_id)
        self._writer = None if active is None or made is None else _Writer(active, made, fetched, Journal(answers))

    def __call__(self, table: pa.Table) -> pa.Table:
        return pa.concat_tables(self.stream(table))

    def stream(self, table: pa.Table) -> Iterator[pa.Table]:
        """The table as one part: an engine sees all its rows at once."""
        values = values_of(table, self.writes)
        kinds, sources = table["kind"].to_pylist(), table["source_caption"].to_pylist()
        asked = []
        for i, kind in enumerate(kinds):
            is_source = kind == "text" or self._config.captioner == "source"
            serves = self._writer is not None and self._writer.serves(kind)
            values["captioner"][i] = "source" if is_source else self._config.captioner if serves else "none"
            if values["reject_reason"][i] is not None:
                continue
            if is_source:
                text = sources[i]
                values["caption"][i] = text if kind == "text" else tidy(text, self._config.max_caption_chars)
            elif serves:
                asked.append(i)
        if asked and self._writer is not None:
            for i, found in self._writer.captions(table.select(self.reads.names).to_pylist(), asked):
                for name, value in found.items():
                    values[name][i] = tidy(value, self._config.max_caption_chars) if name == "caption" else value
        yield replace(table, self.writes, values, self.drops)


class _Writer:
    """The model that writes: its prompts, the pictures that it sees, its engine, what counts of its answers."""

    def __init__(self, config: CaptionerConfig, engine: Engine, fetched: str, journal: Journal):
        self._config, self._engine, self._journal = config, engine, journal
        self._prompts = {"image": load_prompt(config.prompt), "video": load_prompt(config.video_prompt)}
        self._pictures = Pictures(fetched, config.max_pixels, config.num_frames, config.max_frame_pixels)

    def serves(self, kind: str) -> bool:
        """Whether it captions media of this kind."""
        return kind in ("image", "video") and self._config.serves in ("all", f"{kind}s")

    def captions(self, media: list[dict[str, Any]], rows: list[int]) -> Iterator[tuple[int, dict[str, Any]]]:
        """Columns of each of `rows`, numbers of `media`, as answers come; none is asked for that is known."""
        refused: list[tuple[int, RowError]] = []
        prompts = {i: self._prompt(media[i]) for i in rows}
        keys = {i: key_of(media[i]["media_id"], prompts[i]) for i in rows}
        known = self._journal.found(keys.values())
        yield from ((i, known[keys[i]]) for i in rows if keys[i] in known)

        def requests() -> Iterator[tuple[int, Request]]:
            for i in rows:
                if keys[i] in known:
                    continue
                if self._engine.stopped is not None:
                    yield i, Request([], "")
                    continue
                try:
                    with limits.medium(i):
                        pictures = self._pictures.of(media[i])
                except RowError as error:
                    refused.append((i, error))
                    continue
                yield i, Request(pictures, prompts[i])

        with self._journal.block(media[-1]["media_id"]) as block:
            for i, result in self._engine.answers(requests()):
                found = self._judged(result, self._prompts[media[i]["kind"]].text)
                if result is not None:
                    block.add(keys[i], found)
                yield i, found
        yield from ((i, error.columns) for i, error in refused)

    def _prompt(self, medium: dict[str, Any]) -> str:
        return self._prompts[medium["kind"]].filled(medium["source_caption"], medium["metadata"])

    def _judged(self, result: Result, prompt: str) -> dict[str, Any]:
        if result is None:
            return {"reject_reason": KNOWN, "reject_detail": self._engine.stopped}
        if isinstance(result, RowError):
            return result.columns
        told = result._asdict()
        text = clean(told.pop("text"))
        try:
            check(result._replace(text=text), prompt, self._config.checks)
        except RowError as error:
            return told | error.columns
        return told | {"caption": text}


def _engine(name: str, config: CaptionerConfig, share: float, run_id: str) -> Engine:
    if config.engine == "transformers":
        from tokenmill.stages.caption.transformers_engine import TransformersEngine

        return TransformersEngine(config)
    from tokenmill.stages.caption.openai_engine import OpenAiEngine

    return OpenAiEngine(name, config, share, run_id)
