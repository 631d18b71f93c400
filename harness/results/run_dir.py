# SPDX-License-Identifier: BSD-2-Clause
"""The directories of runs: ``runs/NAME`` in the reports directory, and the link ``latest``."""

from __future__ import annotations

import secrets
import shutil
from pathlib import Path

from harness import stamp

UNDELIVERED = "undelivered.txt"
"""A file in the directory of a run that is not in the history yet. It gives the reason."""


def new(reports: Path) -> Path:
    """A path for the directory of a new run. It does not exist yet. The names sort by start time.

    Runs of many controllers share a history, so their names must differ even if they start in the same second.
    """
    return reports / "runs" / f"{stamp.compact()}-{secrets.token_hex(4)}"


def prune(runs: Path, keep: int) -> None:
    """Remove the directories of all runs except the last ``keep``, and except those that the history lacks."""
    old = sorted(path for path in runs.iterdir() if path.is_dir())[:-keep]
    for path in old:
        if not (path / UNDELIVERED).exists():
            shutil.rmtree(path, ignore_errors=True)


def latest(run: Path) -> None:
    """Set the link ``latest`` to this run. If two runs start at the same time, either may win."""
    link = run.parent.parent / "latest"
    temporary = link.with_name(f".latest-{run.name}")
    temporary.symlink_to(Path("runs") / run.name)
    temporary.replace(link)
