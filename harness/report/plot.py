# SPDX-License-Identifier: BSD-2-Clause
"""Trends as SVG drawings: a line of values, the usual value, and a mark at the last one; or several lines."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import lru_cache
from html import escape

from harness.report.trends import Trend
from harness.safetext import plain

_WIDTH, _HEIGHT, _EDGE = 300, 90, 8
# The height of a drawing of several lines, and the room for their names.
_TALL, _NAMES = 150, 66


def svg(trend: Trend) -> str:
    """The drawing as SVG text. The page has its colours. A label gives the values to screen readers."""
    values = [value for _, value in trend.points]
    low, high = min(values), max(values)
    # Start the axis at zero, so that noise does not look like a trend.
    floor = min(0.0, low)
    span = (high - floor) or 1.0
    step = (_WIDTH - 2 * _EDGE) / max(1, len(values) - 1)

    def place(n: int, value: float) -> tuple[float, float]:
        return round(_EDGE + n * step, 1), round(_HEIGHT - _EDGE - (value - floor) / span * (_HEIGHT - 2 * _EDGE), 1)

    places = [place(n, value) for n, value in enumerate(values)]
    path = " ".join(f"{x},{y}" for x, y in places)
    x, y = places[-1]
    _, usual = place(0, trend.usual)
    label = f"{trend.metric} over {len(values)} runs: lowest {low:.2f}, highest {high:.2f}, last {values[-1]:.2f}"
    dots = "".join(
        f'<circle cx="{at}" cy="{height}" r="3" class="hit"><title>{_text(run)}: {value:.2f}</title></circle>'
        for (at, height), (run, value) in zip(places, trend.points, strict=True)
    )
    return (
        f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" aria-label="{_text(label)}">'
        f'<line class="usual" x1="{_EDGE}" x2="{_WIDTH - _EDGE}" y1="{usual}" y2="{usual}"/>'
        f'<polyline points="{path}"/>{dots}<circle class="{"drift" if trend.drift else "last"}" cx="{x}" cy="{y}" r="4"/></svg>'
    )


def lines(series: Mapping[str, Sequence[float | None]], label: str) -> str:
    """Several lines over the same runs as SVG text, each with its name at its last value. None is a gap."""
    high = max((value for values in series.values() for value in values if value is not None), default=0.0) or 1.0
    count = max((len(values) for values in series.values()), default=0)
    step = (_WIDTH - 2 * _EDGE - _NAMES) / max(1, count - 1)
    drawn, free = [], float(_TALL)
    last = {name: next((value for value in reversed(values) if value is not None), 0.0) for name, values in series.items()}
    # The names go upwards from the lowest line, and keep their distance.
    for n, name in enumerate(sorted(series, key=lambda name: last[name])):
        points = [
            f"{round(_EDGE + at * step, 1)},{round(_TALL - _EDGE - value / high * (_TALL - 2 * _EDGE), 1)}"
            for at, value in enumerate(series[name])
            if value is not None
        ]
        y = min(_TALL - _EDGE - last[name] / high * (_TALL - 2 * _EDGE) + 3, free)
        free = y - 9
        drawn.append(
            f'<g style="--n:{n}"><polyline class="many" points="{" ".join(points)}"/>'
            f'<text x="{_WIDTH - _NAMES}" y="{round(y, 1)}">{_text(name)} {last[name]:.1f}</text></g>'
        )
    return f'<svg viewBox="0 0 {_WIDTH} {_TALL}" role="img" aria-label="{_text(label)}">{"".join(drawn)}</svg>'


@lru_cache(maxsize=4096)
def _text(text: str) -> str:
    return escape(plain(text), quote=True)
