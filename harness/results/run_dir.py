# SPDX-License-Identifier: BSD-2-Clause
"""Where a run's results lie: ``runs/NAME`` below the reports, and ``latest``, which points to one."""

from __future__ import annotations

import secrets
from pathlib import Path

from harness import stamp


def new(reports: Path) -> Path:
    """A directory for a run, not made yet; by its name runs sort by when they began."""
    return reports / "runs" / f"{stamp.compact()}-{secrets.token_hex(2)}"


def latest(run: Path) -> None:
    """Let ``latest`` point to this run; of two that begin at once, to either."""
    link = run.parent.parent / "latest"
    made = link.with_name(f".latest-{run.name}")
    made.symlink_to(Path("runs") / run.name)
    made.replace(link)
