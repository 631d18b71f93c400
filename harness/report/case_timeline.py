# SPDX-License-Identifier: BSD-2-Clause
"""The time line of a failed case: console, hypervisor, dom0's kernel and the case's actions, on one clock.

The page shows it; ``timeline.txt`` in the case's directory is the same as text, for less(1).
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from harness import trace
from harness.report import actions, console
from harness.report.console import Line
from harness.report.model import Report
from harness.results.model import PASSED, SKIPPED, Boot

FILE = "timeline.txt"

# Shown in front of a line.
MARKS = {"xen": "(XEN) ", "dom0": "(dom0) ", "action": "# ", "death": "", "guest": ""}


def consoles(files: Sequence[str]) -> list[str]:
    """The console logs among the files of a case."""
    return [name for name in files if name.endswith(".console.log")]


def build(directory: Path, name: str, boots: Sequence[Boot], events: tuple[trace.Event, ...]) -> list[Line]:
    """The time line of the console log ``name``. Raises OSError if it does not exist."""
    boot = next((boot for boot in reversed(boots) if boot.console == name), None)
    guest = console.lines(directory / name, boot)
    unpaused = boot.unpaused if boot else None
    clock = _clock(directory)
    others = [
        *console.xen_lines(_text(directory / "xl-dmesg.log"), clock.get("monotonic"), unpaused),
        *console.dom0_lines(_text(directory / "dom0-dmesg.log"), clock.get("monotonic"), clock.get("uptime"), unpaused),
        *actions.lines(events, unpaused),
    ]
    return console.merge(guest, others)


def text(lines: Sequence[Line]) -> str:
    """The time line as text: seconds since the domain was unpaused, a mark for each source, and ``>>>`` at the death."""
    rows = []
    for line in lines:
        at = f"{line.at:10.3f}" if line.at is not None else " " * 10
        rows.append(f"{at} {'>>> ' if line.kind == 'death' else ''}{MARKS.get(line.kind, '')}{line.text}".rstrip())
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
                parts.append(f"== {name}\n{text(build(directory, name, case.boots, item.events))}")
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
        return path.read_text("utf-8", "replace")
    except OSError:
        return ""
