"""Histograms of stored scores, kept and rejected media stacked, thresholds as lines -> one PNG."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import NullFormatter

_COLUMNS = 3
_NUM_BINS = 40
_KEPT, _REJECTED, _LINE = "#16a34a", "#d4d4d8", "#dc2626"
_WIDE = 50.0  # from this ratio of the largest to the smallest on, the axis is logarithmic


@dataclass(frozen=True)
class Histogram:
    """Values of one score: of kept and of rejected media, float (N,) each, and the thresholds to mark."""

    title: str
    kept: np.ndarray
    rejected: np.ndarray
    lines: Sequence[float]


def draw_histograms(histograms: Sequence[Histogram], out: Path) -> None:
    """Write them as one PNG, three beside each other. Raises ValueError without histograms."""
    if not histograms:
        raise ValueError(f"{out}: no scores to draw; curate first")
    num_rows = math.ceil(len(histograms) / _COLUMNS)
    figure = Figure(figsize=(4.2 * min(_COLUMNS, len(histograms)), 2.9 * num_rows), layout="constrained")
    grid = figure.subplots(num_rows, min(_COLUMNS, len(histograms)), squeeze=False)
    for axes in grid.flat[len(histograms) :]:
        axes.set_axis_off()
    for axes, each in zip(grid.flat, histograms, strict=False):
        values = np.concatenate([each.kept, each.rejected])
        bins, is_log = _bins(values)
        axes.hist([each.kept, each.rejected], bins, stacked=True, color=[_KEPT, _REJECTED], label=["kept", "rejected"])
        for value in each.lines:
            axes.axvline(value, color=_LINE, linewidth=1.2)
            axes.annotate(f"{value:g}", (value, 0.97), xycoords=("data", "axes fraction"), color=_LINE, fontsize=8)
        if is_log:
            axes.set_xscale("log")
            axes.xaxis.set_minor_formatter(NullFormatter())
        axes.set_title(each.title, fontsize=10)
        axes.set_ylabel("media")
        axes.spines[["top", "right"]].set_visible(False)
    grid.flat[0].legend(fontsize=8, frameon=False)
    out.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(out, dpi=110)


def _bins(values: np.ndarray) -> tuple[np.ndarray, bool]:
    """Edges of the bins, and whether they are evenly spaced on a logarithmic axis."""
    low, high = float(values.min()), float(values.max())
    if low > 0 and high / low > _WIDE:
        return np.geomspace(low, high, _NUM_BINS + 1), True
    return np.linspace(low, high if high > low else low + 1, _NUM_BINS + 1), False
