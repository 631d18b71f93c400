# SPDX-License-Identifier: BSD-2-Clause
"""The time line of a failed case: console, hypervisor, dom0's kernel, xenstore, device model and actions, on one clock.

The page shows its end; ``timeline.txt`` in the case's directory has more of it as text, for less(1).
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path

from harness import paths, trace
from harness.report import actions, console
from harness.report.console import Line
from harness.report.model import Report
from harness.results.model import PASSED, SKIPPED, Boot, CaseResult

FILE = "timeline.txt"
MOST = 5000
"""Lines of one time line. The last ones are kept."""

MARKS = {"xen": "(XEN) ", "dom0": "(dom0) ", "xenstore": "(xenstore) ", "qemu": "(qemu) ", "action": "# ", "death": "", "guest": ""}
"""Shown in front of a line."""
# A guest's line that begins like one of another source.
_ALIKE = ("(XEN)", "(dom0)", "(xenstore)", "(qemu)", "(guest)", "#", ">>>")
NO_TIME = "no time"
"""Shown instead of the time for the lines of a log without time stamps. They are at the end."""
# Bytes of a console in the text.
_CONSOLE = 1 << 20
# Bytes of another log that are read, from its end.
_LOG = 4 << 20


def consoles(files: Sequence[str]) -> list[str]:
    """The console logs among the files of a case, without those of an attempt that lost its host."""
    return [name for name in files if name.endswith(".console.log") and "/" not in name]


def build(directory: Path, name: str, case: CaseResult, events: tuple[trace.Event, ...], *, tail: int = console.TAIL) -> list[Line]:
    """The time line of the last ``tail`` bytes of the console log ``name``. Raises OSError if it does not exist."""
    boot = boot_of(case, name) or _restored(case, name, events)
    guest = console.lines(directory / name, boot, tail=tail)
    unpaused = boot.unpaused
    clock = _clock(directory)
    monotonic, uptime = clock.get("monotonic"), clock.get("uptime")
    others = [
        *console.xen_lines(_text(directory / "xl-dmesg.log"), monotonic, unpaused),
        *console.uptime_lines(_text(directory / "dom0-dmesg.log"), monotonic, uptime, unpaused, "dom0"),
        *console.uptime_lines(_text(directory / "xenstore-changes.log"), monotonic, uptime, unpaused, "xenstore"),
        *actions.lines(events, unpaused),
    ]
    shown = console.merge(guest, others)
    shown += console.untimed_lines(_text(directory / f"qemu-dm-{name.removesuffix('.console.log')}.log"), "qemu")
    return shown[-MOST:]


def boot_of(case: CaseResult, name: str) -> Boot | None:
    """The last boot on a console; None if its guest came from a checkpoint."""
    return next((boot for boot in reversed(case.boots) if boot.console == name), None)


def _restored(case: CaseResult, name: str, events: tuple[trace.Event, ...]) -> Boot:
    """Stands for the boot of a guest from a checkpoint. The times count from the begin of the case's last attempt."""
    begun = next((event.clock for event in reversed(events) if event.kind == trace.CASE), None)
    died = math.inf if case.death is not None else None
    return Boot(name, died=died, unpaused=begun, console=name, death=case.death.message if case.death is not None else "")


def stamp(line: Line) -> str:
    """The time of a line in seconds since the domain was unpaused, in 10 columns."""
    return f"{line.at:10.3f}" if line.at is not None else f"{NO_TIME if line.kind == 'qemu' else '':>10}"


def mark(line: Line) -> str:
    """The mark in front of a line. A guest's line gets one only if the line itself begins with a mark."""
    if line.kind == "guest" and line.text.lstrip().startswith(_ALIKE):
        return "(guest) "
    return MARKS.get(line.kind, "")


def text(lines: Sequence[Line]) -> str:
    """The time line as text: the time, a mark for each source, and ``>>>`` at the death."""
    rows = (f"{stamp(line)} {'>>> ' if line.kind == 'death' else ''}{mark(line)}{line.text}".rstrip() for line in lines)
    return "\n".join(rows) + "\n"


def write(path: Path, report: Report) -> None:
    """Write ``timeline.txt`` for each failed case of a run. ``path`` is the run's directory. Raises OSError."""
    for item in report.cases:
        case = item.result
        directory = path / "cases" / case.directory
        if case.outcome in (PASSED, SKIPPED) or not directory.is_dir():
            continue
        parts = []
        for name in consoles(case.files):
            try:
                parts.append(f"== {name}\n{text(build(directory, name, case, item.events, tail=_CONSOLE))}")
            except OSError:
                continue
        if parts:
            (directory / FILE).write_text("\n".join(parts), encoding="utf-8")


def _clock(directory: Path) -> dict[str, float]:
    """The time at which evidence was gathered: our monotonic clock and dom0's uptime, both in seconds."""
    try:
        found = json.loads((directory / "xl-dmesg.clock").read_text())
        return {name: float(found[name]) for name in ("monotonic", "uptime") if name in found}
    except (OSError, ValueError, TypeError):
        return {}


def _text(path: Path) -> str:
    try:
        return paths.tail(path, _LOG).decode("utf-8", "replace")
    except OSError:
        return ""
