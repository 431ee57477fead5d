"""Progress of a run as metrics of Ray, which each node offers to Prometheus (`ray_` stands before their names there).

    tokenmill_done, tokenmill_total          units of the phase: files, media, steps
    tokenmill_kept, tokenmill_rejected       rows as judged; rejected by `reason`
    tokenmill_unwritten, tokenmill_lost      judged and not committed; lost with a worker that died
    tokenmill_rate, tokenmill_left_seconds   units a second, time left
    tokenmill_silent_seconds                 since the last result
    tokenmill_number                         of a training by `name`: loss, text, image, tokens_per_s, mfu, ...
    tokenmill_read_bytes_total               of the media that went into the first pool

All but the last are of the driver, with `run` and `phase`; deploy/grafana.json shows them beside Ray's own.
"""

import pyarrow as pa
import pyarrow.compute as pc
from ray.util.metrics import Counter, Gauge

from tokenmill.pipeline.reports.progress import Progress

_ONE = {
    "done": "Units of the phase that are through.",
    "total": "Units of the phase; 0: not known.",
    "kept": "Rows judged and kept.",
    "unwritten": "Rows judged and not committed yet.",
    "lost": "Rows that went with a worker that died.",
    "rate": "Units a second since the first result.",
    "left_seconds": "Until the phase ends.",
    "silent_seconds": "Since the last result.",
}


class Metrics:
    """Those of one run; call it with each Progress."""

    def __init__(self, run_id: str):
        of_phase = ("run", "phase")
        self._run_id = run_id
        self._one = {name: Gauge(f"tokenmill_{name}", text, of_phase) for name, text in _ONE.items()}
        self._rejected = Gauge("tokenmill_rejected", "Rows judged and rejected.", (*of_phase, "reason"))
        self._number = Gauge("tokenmill_number", "What a phase says of itself.", (*of_phase, "name"))

    def __call__(self, progress: Progress) -> None:
        tags = {"run": self._run_id, "phase": progress.phase}
        values = {
            "done": progress.done,
            "total": progress.total,
            "kept": progress.num_kept,
            "unwritten": progress.unwritten,
            "lost": progress.num_lost,
            "rate": progress.rate,
            "left_seconds": progress.left_s,
            "silent_seconds": progress.silent_s,
        }
        for name, value in values.items():
            if value is not None:
                self._one[name].set(value, tags)
        for reason, count in progress.rejected.items():
            self._rejected.set(count, {**tags, "reason": reason})
        for name, number in progress.numbers.items():
            self._number.set(number, {**tags, "name": name})


class ReadBytes:
    """Those that a worker has read for a phase."""

    def __init__(self, phase: str):
        self._count = Counter("tokenmill_read_bytes_total", "Of media that went into the first pool.", ("phase",))
        self._tags = {"phase": phase}

    def __call__(self, table: pa.Table) -> None:
        """Media of `table` have been read; of those in containers their sizes are known only afterwards."""
        if num_bytes := pc.sum(table["size_bytes"]).as_py():
            self._count.inc(num_bytes, self._tags)
