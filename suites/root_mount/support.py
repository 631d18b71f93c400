# SPDX-License-Identifier: BSD-2-Clause
"""Sources and helpers that the root_mount cases share."""

from __future__ import annotations

from harness.guests.guest import Guest
from harness.xen import vdev


def frontend_state(guest: Guest, name: str) -> str:
    """Return the xenbus state of the frontend of vdev ``name`` (4 connected, 6 closed), or "" if its node is gone."""
    return guest.host.xenstore.read(f"/local/domain/{guest.domid}/device/vbd/{vdev.number(name)}/state") or ""
