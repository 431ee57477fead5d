"""Numbers -> histograms and curves as SVG, drawn in the colours of the page, light or dark."""

from collections.abc import Mapping, Sequence

import numpy as np
from markupsafe import Markup

_WIDTH, _HEIGHT, _PAD = 360, 96, 16
_NUM_BINS = 48
_NUM_POINTS = 240


def histogram(kept: np.ndarray, rejected: np.ndarray, lines: Sequence[float]) -> Markup:
    """Of values of media that are kept and that are rejected, one on the other, with thresholds; the lowest and highest
    hundredth are in the outer bins.
    """
    values = np.concatenate([kept, rejected])
    low, high = np.percentile(values, [0.5, 99.5]) if len(values) else (0.0, 1.0)
    low, high = min([low, *lines]), max([high, *lines])
    margin = (high - low) * 0.06 or 0.5  # for what lies beyond a threshold at an end
    low, high = low - margin if low < 0 else max(0.0, low - margin), high + margin
    edges = np.linspace(low, high, _NUM_BINS + 1)
    counts = [np.histogram(np.clip(part, low, high), edges)[0] for part in (kept, rejected)]
    top = max(1, int((counts[0] + counts[1]).max()))
    width = _WIDTH / _NUM_BINS
    bars = []
    for place in range(_NUM_BINS):
        of_rejected, of_kept = (counts[part][place] / top * _HEIGHT for part in (1, 0))
        x = place * width
        bars.append(_bar("no", x, _HEIGHT - of_rejected, width, of_rejected))
        bars.append(_bar("yes", x, _HEIGHT - of_rejected - of_kept, width, of_kept))
    marks = []
    for value in lines:
        x = (value - low) / (high - low) * _WIDTH
        anchor = "end" if x > _WIDTH * 0.8 else "start"
        marks.append(
            f'<line class="mark" x1="{x:.1f}" x2="{x:.1f}" y1="0" y2="{_HEIGHT}"/>'
            f'<text class="mark" x="{x + (3 if anchor == "start" else -3):.1f}" y="10" text-anchor="{anchor}">'
            f"{value:g}</text>"
        )
    return _svg([*filter(None, bars), *marks], f"{low:.4g}", f"{high:.4g}", f"{len(values):,} media")


def curves(named: Mapping[str, tuple[np.ndarray, np.ndarray]]) -> Markup:
    """Lines through points (x, y) by name, the lowest y at the bottom; at most 240 points each, means of what lies
    between.
    """
    found = {name: _thinned(*points) for name, points in named.items() if len(points[0])}
    if not found:
        return Markup("")
    xs, ys = (np.concatenate([points[axis] for points in found.values()]) for axis in (0, 1))
    low, high = float(ys.min()), float(np.percentile(ys, 99))
    high = high if high > low else low + 1.0
    right = max(1.0, float(xs.max()))
    drawn = []
    for number, (x, y) in enumerate(found.values()):
        points = " ".join(
            f"{px / right * _WIDTH:.1f},{(1 - (min(py, high) - low) / (high - low)) * _HEIGHT:.1f}"
            for px, py in zip(x, y, strict=True)
        )
        drawn.append(f'<polyline class="line l{number % 6}" points="{points}"/>')
    legend = Markup(" ").join(
        Markup('<span class="key l{}">{} {:.3f}</span>').format(number % 6, name, float(points[1][-1]))
        for number, (name, points) in enumerate(found.items())
    )
    return _svg(drawn, f"{low:.3g} to {high:.3g}", f"step {right:,.0f}", "") + Markup(
        '<p class="legend">{}</p>'
    ).format(legend)


def _thinned(x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    parts = min(len(x), _NUM_POINTS)
    return tuple(np.array([part.mean() for part in np.array_split(values, parts)]) for values in (x, y))  # type: ignore[return-value]


def _bar(name: str, x: float, y: float, width: float, height: float) -> str:
    if height <= 0:
        return ""
    return f'<rect class="{name}" x="{x:.1f}" y="{y:.1f}" width="{width - 0.6:.1f}" height="{height:.1f}"/>'


def _svg(parts: Sequence[str], left: str, right: str, middle: str) -> Markup:
    """The parts are made of numbers alone; texts are escaped."""
    texts = [(0, "start", left), (_WIDTH / 2, "middle", middle), (_WIDTH, "end", right)]
    labels = Markup("").join(
        Markup('<text x="{}" y="{}" text-anchor="{}">{}</text>').format(x, _HEIGHT + _PAD - 3, anchor, text)
        for x, anchor, text in texts
    )
    return (
        Markup('<svg viewBox="0 0 {} {}" role="img" aria-label="{} to {}, {}">').format(
            _WIDTH, _HEIGHT + _PAD, left, right, middle
        )
        + Markup("".join(parts))
        + labels
        + Markup("</svg>")
    )
