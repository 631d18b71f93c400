# SPDX-License-Identifier: BSD-2-Clause
"""Memory.settle(): the conditions under which a balloon counts as settled."""

from __future__ import annotations

from itertools import chain, repeat
from types import SimpleNamespace
from typing import Any

from harness.guests.memory import Memory
from harness.oracles.ballooning import MIB, Sample


class SampledMemory(Memory):
    """A guest with these sizes in MiB, one for each sample; the last size stays."""

    def __init__(self, *mib: int) -> None:
        self.guest: Any = SimpleNamespace(scale=1.0)
        self._sizes = chain(mib, repeat(mib[-1]))

    def sample(self) -> Sample:
        current = next(self._sizes) * MIB
        return Sample(current, current, current, 0, 0, current, current)

    def _current(self) -> int:
        return self.sample().current


def test_a_balloon_that_passes_its_target_has_not_settled() -> None:
    assert SampledMemory(160, 120, 104).settle(120 * MIB, 1.5)[0].current == 104 * MIB
    assert SampledMemory(160, 140, 120).settle(120 * MIB, 30)[0].current == 120 * MIB


def test_without_a_target_the_balloon_must_stand_still_for_a_while() -> None:
    last, seconds = SampledMemory(160, 160, 160, 120).settle(seconds=30)
    assert last.current == 120 * MIB
    assert seconds > 2.0
