# SPDX-License-Identifier: BSD-2-Clause
"""The directories of runs: ``runs/NAME`` in the reports directory, and the link ``latest``."""

from __future__ import annotations

import secrets
from pathlib import Path

from harness import stamp


def new(reports: Path) -> Path:
    """A path for the directory of a new run. It does not exist yet. The names sort by start time."""
    return reports / "runs" / f"{stamp.compact()}-{secrets.token_hex(2)}"


def latest(run: Path) -> None:
    """Set the link ``latest`` to this run. If two runs start at the same time, either may win."""
    link = run.parent.parent / "latest"
    temporary = link.with_name(f".latest-{run.name}")
    temporary.symlink_to(Path("runs") / run.name)
    temporary.replace(link)
