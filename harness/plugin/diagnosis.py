# SPDX-License-Identifier: BSD-2-Clause
"""What a failed case shows of its guests: the backtrace with source lines, and what a silent guest was doing."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path

from harness.console.deaths import Death
from harness.errors import HarnessError
from harness.guests import postmortem, sourcelines
from harness.guests.guest import Guest

log = logging.getLogger("fxh.evidence")

BACKTRACE = "backtrace.txt"


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


def inspect(guests: Sequence[Guest], directory: Path) -> None:
    """Leave each living guest's stacks and kernel messages in ``directory``, as ``vcpus-NAME.txt`` and ``messages-NAME.txt``."""
    for guest in guests:
        if not guest.domid:
            continue
        found = postmortem.inspect(guest.host.transport, guest.domid, guest.config.vcpus, guest.kernel)
        for name, text in found.items():
            if text.startswith(postmortem.NOT_READ):
                log.warning("%s of %s %s", name, guest.name, text.strip())
            else:
                (directory / f"{name}-{guest.name}.txt").write_text(text)
