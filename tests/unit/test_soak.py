"""What the soak calls growth: the floor of a measure over a quarter of the run, whatever goes on above it."""

from __future__ import annotations

import pytest
from soak import Measure, grown

LOOPS = Measure("loops", "")
RSS = Measure("rss", "KiB", 0.03, 100)


@pytest.mark.parametrize(
    ("measure", "values", "said"),
    [
        # Warm-up is the first quarter's own affair.
        (LOOPS, [0, 1, 2, 2, 3, 2, 4, 2], ""),
        # Busy moments are no leak as long as it comes down again.
        (LOOPS, [0, 0, 1, 0, 0, 1, 9, 0], ""),
        (LOOPS, [0, 0, 1, 1, 1, 1, 2, 3], "loops grew from 1 to 2, 0 more are allowed"),
        (RSS, [1000, 1000, 2000, 2100, 2200, 2200, 2159, 2300], ""),
        (RSS, [1000, 1000, 2000, 2100, 2200, 2200, 2161, 2300], "rss grew from 2000 to 2161 KiB, 160 more are allowed"),
        # Too short to say anything.
        (LOOPS, [0, 1, 2], ""),
    ],
)
def test_growth(measure: Measure, values: list[float], said: str) -> None:
    assert grown(measure, values) == said
