# SPDX-License-Identifier: BSD-2-Clause
"""A guest's clock, compared with dom0's."""

from __future__ import annotations

from harness.guests.guest import Guest


def clock_offset(guest: Guest) -> float:
    """The guest's clock minus dom0's, in seconds. Both are read in whole seconds."""
    read = ["date", "+%s"]
    before = int(guest.host.transport.run(read).text)
    there = int(guest.sh("date +%s"))
    return there - (before + int(guest.host.transport.run(read).text)) / 2
