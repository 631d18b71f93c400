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


# MiB, 0 for the source's own: the control guest has its files in the memory that it is asked for.
MEMORY = {"freebsd": 0, "linux": 160}


@pytest.fixture
def guest(booted: NewGuest, cell: Cell) -> Guest:
    return booted(at_rest, memory=MEMORY[cell.os])


@pytest.fixture
def first(guest: Guest) -> Sample:
    """How the guest stood when it was at rest."""
    return Sample(**guest.prepared)


@pytest.fixture
def low(guest: Guest) -> int:
    """MiB to which it can come down and work on: half of its memory. The control guest has 160, its files in it, and its kernel
    (6.1 more than 6.12) takes a third: five eighths."""
    whole = guest.config.memory
    return whole // 2 if guest.profile.os == "freebsd" else whole * 5 // 8
