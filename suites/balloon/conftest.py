# SPDX-License-Identifier: BSD-2-Clause
"""A guest at rest: where all cases of this suite begin."""

from __future__ import annotations

from dataclasses import asdict

import pytest

from harness.guests.guest import Guest
from harness.guests.memory import Memory
from harness.oracles.ballooning import Sample
from harness.plugin.cells import Cell
from harness.plugin.fixtures import NewGuest


def at_rest(guest: Guest) -> dict[str, int]:
    """A preparation: its balloon stands still; how it stands."""
    return asdict(Memory(guest).settle()[0])


@pytest.fixture
def guest(booted: NewGuest, cell: Cell) -> Guest:
    return booted(at_rest, memory=cell.guest_os.balloon_limits.memory)


@pytest.fixture
def first(guest: Guest) -> Sample:
    """How the guest stood when it was at rest."""
    return Sample(**guest.prepared)


@pytest.fixture
def low(guest: Guest) -> int:
    """MiB to which it can come down and work on."""
    return int(guest.config.memory * guest.profile.balloon_limits.low)
