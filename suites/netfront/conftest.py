"""A guest with an address, and dom0 at the other end."""

from __future__ import annotations

import pytest

from harness.guests.guest import Guest
from harness.guests.link import Link
from harness.plugin.fixtures import NewGuest
from harness.plugin.rig import CaseContext


def linked(guest: Guest) -> dict[str, str]:
    """A preparation: dom0 and the guest have reached each other."""
    found = Link(guest).up()
    assert found.wait_up(), f"{guest.name} does not reach dom0 over {found.vif}"
    return {"interface": found.interface}


@pytest.fixture
def link(booted: NewGuest, case: CaseContext) -> Link:
    guest = booted(linked)
    found = Link(guest, interface=guest.prepared["interface"])
    case.undo.append(found.down)
    return found
