# SPDX-License-Identifier: BSD-2-Clause
"""Lines that the boot of a cell prints in one run and not in another."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from harness.report import console_diff
from harness.report.console_diff import Difference
from harness.report.trends import BOOTS
from harness.results.model import RunResult


@dataclass(frozen=True)
class ConsoleChange:
    """The difference between the boot consoles of a cell in two runs. ``before`` is the name of the earlier run."""

    cell: str
    before: str
    difference: Difference


def changes(pairs: Iterable[tuple[str, str, Path, Path]]) -> tuple[ConsoleChange, ...]:
    """The cells whose consoles differ. Each pair is (cell, name of the earlier run, its case directory, the later one's)."""
    found = []
    for cell, name, before, now in pairs:
        old, new = _console(before), _console(now)
        if old and new and (difference := console_diff.compare(old, new)):
            found.append(ConsoleChange(cell, name, difference))
    return tuple(found)


def between(before: RunResult, now: RunResult, runs: Path) -> tuple[ConsoleChange, ...]:
    """The cells whose boot consoles differ between two runs, whose directories are in ``runs``."""
    old, new = ({case.cell: case for case in run.cases if case.key == BOOTS} for run in (before, now))
    return changes(
        (cell, before.run, runs / before.run / "cases" / old[cell].directory, runs / now.run / "cases" / case.directory)
        for cell, case in new.items()
        if cell in old
    )


def _console(directory: Path) -> bytes:
    """The case's first console log, by name; empty if there is none."""
    logs = sorted(directory.glob("*.console.log"))
    try:
        with logs[0].open("rb") as file:
            return file.read(console_diff.LONGEST)
    except (OSError, IndexError):
        return b""
