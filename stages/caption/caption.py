"""Kept media -> what one captioner says of them: a row for each, of a long clip for each span.

`source` needs no model: it is the medium's own caption, of a text document the document. All others are models behind
an engine (engine.py): they look at pictures, or put together what other captioners wrote. What an engine did not ask
before it stopped comes out as a row that only says so (`KNOWN`): it becomes no row of the table, its `reject_detail`
tells the conductor why, and the next run asks it.
"""

from collections.abc import Iterator
from typing import Any, NamedTuple

import pyarrow as pa

from tokenmill.stages.caption import journal
from tokenmill.stages.caption.captioners.config import CaptionerConfig
from tokenmill.stages.caption.engines.engine import Engine, Request, Result
from tokenmill.stages.caption.pictures import Pictures, frame_times, spans
from tokenmill.stages.caption.texts import measure, verdicts
from tokenmill.stages.caption.texts.text import inputs_id, tidy
from tokenmill.stages.table import limits
from tokenmill.stages.table.columns import CAPTIONS, KNOWN, TO_CAPTION
from tokenmill.stages.table.rows import RowError, without
from tokenmill.stages.table.text import clean


class Caption:
    """Kept media -> rows of CAPTIONS of the captioner `name`. Costs what the captioner costs. A missing caption of the
    source rejects nothing; what an answer must be is for the captioner's rules. `share`: the part of the run's budget
    that this worker may spend; `answers`: where they are kept until they are committed (journal.py).
    """

    reads = TO_CAPTION
    writes = without(CAPTIONS, "media_id", "fingerprint", "run_id")
    drops = tuple(name for name in TO_CAPTION.names if name not in CAPTIONS.names)
    rows = "more"

    def __init__(
        self,
        name: str,
        config: CaptionerConfig,
        fetched: str = "",
        share: float = 1.0,
        answers: str = "",
        run_id: str = "",
    ):
        self._name, self._config, self._writer = name, config, None
        if config.engine != "source":
            self._writer = _Writer(config, _engine(name, config, share, run_id), fetched, journal.Journal(answers))

    def __call__(self, table: pa.Table) -> pa.Table:
        return pa.concat_tables(self.stream(table))

    def stream(self, table: pa.Table) -> Iterator[pa.Table]:
        """The table as one part: an engine sees all its rows at once."""
        media = table.select(self.reads.names).to_pylist()
        rows = [_of_source(medium) for medium in media] if self._writer is None else self._writer.rows(media)
        made = pa.Table.from_pylist(
            [{"captioner": self._name, **row} for row in rows], without(CAPTIONS, "fingerprint", "run_id")
        )
        yield verdicts.judge_captions(made, self._config.verdicts)

    def close(self) -> None:
        """Give back what its engine holds."""
        if self._writer is not None:
            self._writer.close()


def _of_source(medium: dict[str, Any]) -> dict[str, Any]:
    text = medium["source_caption"]
    return {"media_id": medium["media_id"], "caption": text if medium["kind"] == "text" else tidy(text)}


class _Part(NamedTuple):
    """What one request is about: a medium, or a span of it. `row`: the number of the medium in the table."""

    row: int
    medium: dict[str, Any]
    span: int | None
    times: tuple[float, float] | None


class _Writer:
    """The model that writes: its prompts, the pictures that it sees, its engine, what its answers are."""

    def __init__(self, config: CaptionerConfig, engine: Engine, fetched: str, answers: journal.Journal):
        self._config, self._engine, self._answers = config, engine, answers
        prompts = config.prompts
        self._prompts = {"image": prompts[0], "video": prompts[-1]}
        self._pictures = Pictures(fetched, config.max_pixels, config.num_frames, config.max_frame_pixels)

    def rows(self, media: list[dict[str, Any]]) -> Iterator[dict[str, Any]]:
        """Rows of all media, in their order; nothing is asked that is known."""
        parts = [part for row, medium in enumerate(media) for part in self._parts(row, medium)]
        prompts = [self._prompt(part) for part in parts]
        keys = [journal.key_of(f"{part.medium['media_id']} {part.span}", prompts[i]) for i, part in enumerate(parts)]
        known = self._answers.found(keys)
        found = {i: known[key] for i, key in enumerate(keys) if key in known}

        def requests() -> Iterator[tuple[int, Request]]:
            for i, part in enumerate(parts):
                if keys[i] in known:
                    continue
                if self._engine.stopped is not None:
                    yield i, Request([], "")
                    continue
                try:
                    with limits.medium(part.row):
                        pictures = [] if self._config.reads else self._pictures.of(part.medium, part.times)
                except RowError as error:
                    found[i] = error.columns
                    continue
                yield i, Request(pictures, prompts[i])

        with self._answers.block(media[-1]["media_id"]) as block:
            for i, result in self._engine.answers(requests()):
                found[i] = self._columns(result, parts[i].medium)
                if result is not None:
                    block.add(keys[i], found[i])
        stopped = {part.medium["media_id"] for i, part in enumerate(parts) if found[i].get("reject_reason") == KNOWN}
        for i, part in enumerate(parts):
            columns = found[i]
            if part.medium["media_id"] in stopped:  # of a clip all spans or none
                columns = {"reject_reason": KNOWN, "reject_detail": self._engine.stopped}
            yield {"media_id": part.medium["media_id"], **self._place(part), **columns}

    def close(self) -> None:
        self._engine.close()

    def _parts(self, row: int, medium: dict[str, Any]) -> list[_Part]:
        if medium["kind"] != "video" or self._config.reads:
            return [_Part(row, medium, None, None)]
        of_clip = spans(medium["start_s"], medium["end_s"], self._config.max_span_s)
        if len(of_clip) == 1:
            return [_Part(row, medium, None, of_clip[0])]
        return [_Part(row, medium, i, span) for i, span in enumerate(of_clip)]

    def _place(self, part: _Part) -> dict[str, Any]:
        prompt = self._prompts[part.medium["kind"]]
        start_s, end_s = (None, None) if part.span is None or part.times is None else part.times
        return {
            "span": part.span,
            "start_s": start_s,
            "end_s": end_s,
            "model": self._config.model,
            "prompt": f"{prompt.name} {prompt.version}",
            "inputs": inputs_id(part.medium["read"]),
        }

    def _prompt(self, part: _Part) -> str:
        at = [] if part.times is None else frame_times(0.0, part.times[1] - part.times[0], self._config.num_frames)
        return self._prompts[part.medium["kind"]].filled(part.medium, at)

    def _columns(self, result: Result, medium: dict[str, Any]) -> dict[str, Any]:
        if result is None:
            return {"reject_reason": KNOWN, "reject_detail": self._engine.stopped}
        if isinstance(result, RowError):
            return result.columns
        told = result._asdict()
        text = clean(told.pop("text"))
        told |= measure.measured(text, result.finish_reason, self._prompts[medium["kind"]].text, medium["read"])
        return told | {"caption": tidy(text) or ""}


def _engine(name: str, config: CaptionerConfig, share: float, run_id: str) -> Engine:
    if config.engine == "transformers":
        from tokenmill.stages.caption.engines.transformers_engine import TransformersEngine

        return TransformersEngine(config)
    from tokenmill.stages.caption.engines.openai_engine import OpenAiEngine

    return OpenAiEngine(name, config, share, run_id)
