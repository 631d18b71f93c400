# SPDX-License-Identifier: BSD-2-Clause
"""Delivery of runs that the history lacks, because it could not be written or the run was killed. Their directories keep them.

The next command that uses the history delivers them, oldest first and exactly once. It adds each run in one transaction, under a
unique name.
"""

from __future__ import annotations

import contextlib
import logging
import re
from datetime import datetime
from pathlib import Path

from harness.config import load
from harness.errors import HarnessError
from harness.history.sqlite import HistoryDamaged
from harness.history.store import FILE, History
from harness.results import model, run_dir
from harness.results.model import RunResult

log = logging.getLogger("fxh.history")


def history_of(reports: Path) -> History:
    """The history of the runs in ``reports``: the database of ``run.history``, or a file there. Raises the errors of History."""
    return History(load().config.run.history or reports / FILE)


def record(path: Path, run: RunResult) -> bool:
    """Record a run, after those before it that the history lacks. ``path`` is its directory.

    Returns False if the history could not be written. Then a file in the directory says so, and the log has a warning.
    """
    failure: HarnessError | None = None
    for _ in range(2):
        try:
            history = history_of(path.parent.parent)
            deliver(path.parent, history, without=path.name)
            if not is_left_out(run, history):
                history.record(run)
        except HistoryDamaged as exc:
            failure = exc
            continue
        except HarnessError as exc:
            failure = exc
            break
        (path / run_dir.UNDELIVERED).unlink(missing_ok=True)
        return True
    assert failure is not None
    log.warning(
        "the run is not in the history yet: %s (hint: %s). Its directory keeps it; `fxh history` delivers it",
        failure.message,
        failure.hint,
    )
    with contextlib.suppress(OSError):
        (path / run_dir.UNDELIVERED).write_text(f"{failure}\n`fxh history` delivers this run.\n")
    return False


def deliver(runs: Path, history: History, *, without: str = "") -> int:
    """Record the finished runs in ``runs`` that the history lacks, oldest first, but not ``without``. Returns their number.

    Raises the errors of History. A directory that cannot be read is left out.
    """
    parts = history.parts()
    recorded = parts | history.numbers()
    place = count = 0
    for path in sorted(runs.iterdir()) if runs.is_dir() else ():
        if path.name == without or not (path / "run.json").is_file():
            continue
        # The order of the runs of one machine stays, whatever their clock says.
        if path.name in recorded:
            place = recorded[path.name]
        else:
            try:
                run = model.read_run(path)
            except (OSError, ValueError, TypeError):
                continue
            # An unfinished run may still be running; it records itself. A merged run with a killed shard is complete.
            if not run.ended and not run.parts:
                continue
            # A later merge of the same shards may have replaced it.
            if not is_left_out(run, history) and not (run.parts and parts.keys() >= set(run.parts)):
                place = history.record(run, max(place_of(run), place + 1))
                count += 1
        (path / run_dir.UNDELIVERED).unlink(missing_ok=True)
    return count


def is_left_out(run: RunResult, history: History) -> bool:
    """Whether the run is a shard and the history is shared: `fxh merge` writes all shards at once."""
    # 2/3, but not 1/1 and not the "1/3 | 2/3 | 3/3" of a merged run
    match = re.fullmatch(r"\d+/(\d+)", run.inputs.get("shard", ""))
    return history.database.shared and not run.parts and match is not None and int(match[1]) > 1


def place_of(run: RunResult) -> int:
    """The place of a run in a history that is ordered by time: its end (ms since 1970), or its start without one.

    This is the last millisecond of that second. Returns 0 for an invalid time.
    """
    with contextlib.suppress(ValueError, OverflowError):
        return max(0, int(datetime.fromisoformat(run.ended or run.started).timestamp() * 1000) + 999)
    return 0
