"""What a command says as JSON lines, for whoever collects logs: with TOKENMILL_LOG=json in the environment.

    {"time": "2026-11-29T18:00:00.123Z", "node": HOST, "run": ID, "phase": "curate", "event": "message", "text": ...}
    {"time": ..., "event": "progress", "done": 384, "total": 413, "rate": 12.1, "rejected": {"corrupt": 2}, ...}

A table is a message, too, its lines in `text`.
"""

import io
import json
import socket
from datetime import UTC, datetime
from typing import Any

from rich.console import Console

from tokenmill.pipeline.reports.progress import Progress

_WIDTH = 160


class EventConsole(Console):
    """A console that prints JSON lines; `run` and `phase` stand in each where they are known."""

    run: str | None = None
    phase: str | None = None

    def __init__(self, **how: Any):
        super().__init__(**{"force_terminal": False, "width": _WIDTH, **how})
        self._node = socket.gethostname()

    def print(self, *objects: Any, **how: Any) -> None:  # type: ignore[override]
        """A message."""
        plain = Console(file=io.StringIO(), width=_WIDTH, force_terminal=False, color_system=None)
        plain.print(*objects, **{**how, "soft_wrap": True})
        lines = plain.file.getvalue().splitlines()  # type: ignore[attr-defined]
        text = "\n".join(line.rstrip() for line in lines).strip("\n")
        self._write("message", {"text": text.strip() if "\n" not in text else text})

    def tell(self, progress: Progress) -> None:
        """How far a phase is."""
        told = {
            name: round(value, 3) if isinstance(value, float) else value
            for name, value in progress.as_dict().items()
            if name != "line" and value is not None
        }
        self._write("progress", told)

    def _write(self, event: str, columns: dict[str, Any]) -> None:
        now = datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
        known = {"time": now, "node": self._node, "run": self.run, "phase": self.phase, "event": event}
        document = {name: value for name, value in known.items() if value is not None} | columns
        self.file.write(json.dumps(document, ensure_ascii=False) + "\n")
        self.file.flush()
