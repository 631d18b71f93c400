# SPDX-License-Identifier: BSD-2-Clause
"""When a guest's balloon counts as having settled."""

from __future__ import annotations

from itertools import chain, repeat
from types import SimpleNamespace
from typing import Any

from harness.guests.memory import Memory
from harness.oracles.ballooning import MIB, Sample


class Looks(Memory):
    """A guest that stands at these MiB, look by look, and at the last from then on."""

    def __init__(self, *mib: int) -> None:
        self.guest: Any = SimpleNamespace(scale=1.0)
        self._looks = chain(mib, repeat(mib[-1]))

    def sample(self) -> Sample:
        current = next(self._looks) * MIB
        return Sample(current, current, current, 0, current, current)

    def _current(self) -> int:
        return self.sample().current


def test_on_its_way_past_is_not_there() -> None:
    assert Looks(160, 120, 104).settle(120 * MIB, 1.5)[0].current == 104 * MIB
    assert Looks(160, 140, 120).settle(120 * MIB, 30)[0].current == 120 * MIB


def test_without_a_wish_it_has_to_stand_for_a_while() -> None:
    last, seconds = Looks(160, 160, 160, 120).settle(seconds=30)
    assert last.current == 120 * MIB
    assert seconds > 2.0
