"""A guest with an address, and dom0 at the other end."""

from __future__ import annotations

import pytest

from harness.guests.guest import Guest
from harness.guests.link import Link
from harness.plugin.rig import CaseContext


@pytest.fixture
def link(guest: Guest, case: CaseContext) -> Link:
    found = Link(guest).up()
    case.undo.append(found.down)
    assert found.wait_up(), f"{guest.name} does not reach dom0 over {found.vif}"
    return found
