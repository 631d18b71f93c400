# SPDX-License-Identifier: BSD-2-Clause
"""Diagnose the guests of a failed case: the backtrace with source lines, the state of a silent guest, and complaints."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path

from harness.console.clean import Cleaner
from harness.console.complaints import GUEST
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
    kernel = next((guest.kernel for guest in reversed(guests) if guest.kernel is not None), None)
    if kernel is None or not death.frames:
        return ()
    try:
        lines = sourcelines.backtrace(death.frames, kernel)
        if lines:
            (directory / BACKTRACE).write_text("\n".join(lines) + "\n")
    except (HarnessError, OSError) as exc:
        log.warning("no source lines: %s", exc)
        return ()
    return tuple(lines)


def complaints(directory: Path, logs: Mapping[str, str]) -> tuple[ComplaintRecord, ...] | None:
    """The complaints on the consoles of a case and in the lines of its host's ``logs``, one per source and identity.

    None if there is neither. Only the end of a long console is searched.
    """
    consoles = sorted(directory.glob("*.console.log"))
    texts = [*((GUEST, _console(path)) for path in consoles), *logs.items()]
    found: dict[tuple[str, str], ComplaintRecord] = {}
    for source, text in texts:
        for one in find_complaints(text, source):
            before = found.get((source, one.identity))
            count = one.count + (before.count if before else 0)
            found[source, one.identity] = ComplaintRecord(one.kind, source, one.message, one.identity, one.detail, count)
    return tuple(found.values()) if texts else None


def _console(path: Path) -> str:
    with path.open("rb") as file:
        file.seek(max(0, path.stat().st_size - _SEARCHED))
        return decode(Cleaner().text(file.read(_SEARCHED)))


def inspect(guests: Sequence[Guest], directory: Path) -> None:
    """Leave each living guest's stacks and kernel messages in ``directory``, as ``vcpus-NAME.txt`` and ``messages-NAME.txt``."""
    for guest in guests:
        if guest.domid < 0:  # not created
            continue
        found = postmortem.inspect(guest.host.transport, guest.domid, guest.config.vcpus, guest.kernel)
        for name, text in found.items():
            if text.startswith(postmortem.NOT_READ):
                log.warning("%s of %s %s", name, guest.name, text.strip())
            else:
                (directory / f"{name}-{guest.name}.txt").write_text(text)
