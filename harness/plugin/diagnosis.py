# SPDX-License-Identifier: BSD-2-Clause
"""Diagnose the guests of a failed case: the backtrace with source lines, the state of a silent guest, and complaints."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path

from harness.console.clean import Cleaner
from harness.console.complaints import complaints as find_complaints
from harness.console.deaths import Death
from harness.console.text import decode
from harness.errors import HarnessError
from harness.guests import postmortem, sourcelines
from harness.guests.guest import Guest
from harness.results.model import ComplaintRecord

log = logging.getLogger("fxh.evidence")

BACKTRACE = "backtrace.txt"
# Bytes of a console that are searched for complaints.
_SEARCHED = 1 << 20


def backtrace(death: Death, guests: Sequence[Guest], directory: Path) -> tuple[str, ...]:
    """Write the death's backtrace with files and lines to ``directory`` and return it; empty without debugging information."""
    symbols = next((guest.symbols for guest in reversed(guests) if guest.symbols is not None), None)
    if symbols is None or not death.frames:
        return ()
    try:
        lines = sourcelines.backtrace(death.frames, symbols)
        if lines:
            (directory / BACKTRACE).write_text("\n".join(lines) + "\n")
    except (HarnessError, OSError) as exc:
        log.warning("no source lines: %s", exc)
        return ()
    return tuple(lines)


def complaints(directory: Path) -> tuple[ComplaintRecord, ...] | None:
    """The complaints on the consoles of a case, one per identity. None if it has no console.

    Only the end of a long console is searched.
    """
    logs = sorted(directory.glob("*.console.log"))
    found: dict[str, ComplaintRecord] = {}
    for path in logs:
        with path.open("rb") as file:
            file.seek(max(0, path.stat().st_size - _SEARCHED))
            text = decode(Cleaner().text(file.read()))
        for one in find_complaints(text):
            before = found.get(one.identity)
            count = one.count + (before.count if before else 0)
            found[one.identity] = ComplaintRecord(one.kind, one.source, one.message, one.identity, one.detail, count)
    return tuple(found.values()) if logs else None


def inspect(guests: Sequence[Guest], directory: Path) -> None:
    """Leave each living guest's stacks and kernel messages in ``directory``, as ``vcpus-NAME.txt`` and ``messages-NAME.txt``."""
    for guest in guests:
        if guest.domid < 0:  # not created
            continue
        found = postmortem.inspect(guest.host.transport, guest.domid, guest.config.vcpus, guest.symbols)
        for name, text in found.items():
            if text.startswith(postmortem.NOT_READ):
                log.warning("%s of %s %s", name, guest.name, text.strip())
            else:
                (directory / f"{name}-{guest.name}.txt").write_text(text)
