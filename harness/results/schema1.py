# SPDX-License-Identifier: BSD-2-Clause
"""Readers of schema 1, in which cell, known issue and death were only text.

Earlier harness versions wrote it. No other module may read these facts from a name or a sentence.
"""

from __future__ import annotations

import re

from harness.results.where import Where

# freebsd-pvh-xen-4.20      freebsd-hvm-uefi-xen-4.20      freebsd-15.1-hvm-bios-xen-4.17      control-pv-myhost
_CELL = re.compile(
    r"(?P<guest>control|freebsd)(?:-\d+\.\d+)?-(?P<type>pvh|hvm|pvshim|pv)"
    r"(?:-(?P<firmware>uefi|ovmf|bios|seabios))?-(?P<host>.+)"
)
# xen-4.20
_LAB = re.compile(r"xen-(\d+\.\d+)")
# 0badcafe panic: at the disco @ vm_fault
_IDENTITY = re.compile(r"[0-9a-f]{8} (?P<kind>[\w-]+): (?P<message>.*) @ .+", re.DOTALL)
_EXPECTED = "known issue, "
_PASSED = "this passes, and is listed as a known issue, "


def where(cell: str) -> Where:
    """The parts of a cell's name. A name of another form gives only a host."""
    match = _CELL.fullmatch(cell)
    if match is None:
        return Where(host=cell)
    lab = _LAB.fullmatch(match["host"])
    firmware = "uefi" if match["firmware"] in ("uefi", "ovmf") else ""
    return Where(match["guest"], match["type"], match["host"], lab[1] if lab else "", firmware)


def known_issue(outcome: str, reason: str) -> tuple[str, str, bool] | None:
    """Bug, description, and whether the case passed despite the entry; None for a case without a known issue."""
    first = reason.partition("\n")[0]
    if outcome == "known":
        line, gone = first.removeprefix(_EXPECTED), False
    elif outcome == "failed" and first.startswith(_PASSED):
        line, gone = first.removeprefix(_PASSED), True
    else:
        return None
    bug, _, why = line.partition(": ")
    return bug, why, gone


def death(identity: str) -> tuple[str, str] | None:
    """Kind and normalised message of a death's identity; None for another text."""
    match = _IDENTITY.fullmatch(identity)
    return (match["kind"], match["message"]) if match else None
