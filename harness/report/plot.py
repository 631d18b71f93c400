# SPDX-License-Identifier: BSD-2-Clause
"""A trend as an SVG drawing: a line of values, the usual value, and a mark at the last one."""

from __future__ import annotations

from html import escape

from harness.report.trends import Trend
from harness.safetext import plain

_WIDTH, _HEIGHT, _EDGE = 300, 90, 8


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

    path = " ".join(f"{x},{y}" for x, y in (place(n, value) for n, value in enumerate(values)))
    x, y = place(len(values) - 1, values[-1])
    _, usual = place(0, trend.usual)
    label = f"{trend.metric} over {len(values)} runs: lowest {low:.2f}, highest {high:.2f}, last {values[-1]:.2f}"
    dots = "".join(
        f'<circle cx="{place(n, value)[0]}" cy="{place(n, value)[1]}" r="3" class="hit"><title>{_text(run)}: {value:.2f}</title></circle>'
        for n, (run, value) in enumerate(trend.points)
    )
    return (
        f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" aria-label="{_text(label)}">'
        f'<line class="usual" x1="{_EDGE}" x2="{_WIDTH - _EDGE}" y1="{usual}" y2="{usual}"/>'
        f'<polyline points="{path}"/>{dots}<circle class="{"drift" if trend.drift else "last"}" cx="{x}" cy="{y}" r="4"/></svg>'
    )


def _text(text: str) -> str:
    return escape(plain(text), quote=True)
