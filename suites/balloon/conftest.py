# SPDX-License-Identifier: BSD-2-Clause
"""Fixtures: a guest whose balloon has settled, and its memory."""

from __future__ import annotations

import pytest

from harness.guests.guest import Guest
from harness.guests.memory import Memory
from harness.oracles.ballooning import Sample
from harness.plugin.cells import Cell
from harness.plugin.fixtures import Booted

from .support import settle_balloon


@pytest.fixture
def settled_guest(booted: Booted, cell: Cell) -> Guest:
    """A booted guest whose balloon does not move."""
    return booted(settle_balloon, memory=cell.guest_os.balloon_limits.memory)


@pytest.fixture
def memory(settled_guest: Guest) -> Memory:
    """The memory of the settled guest, as the guest and as Xen see it."""
    return Memory(settled_guest)


@pytest.fixture
def initial(settled_guest: Guest) -> Sample:
    """The memory of the settled guest at the start of the case."""
    return Sample(**settled_guest.prepared)


@pytest.fixture
def low(settled_guest: Guest) -> int:
    """A target in MiB at which the guest still works."""
    return int(settled_guest.config.memory * settled_guest.os.balloon_limits.low)
