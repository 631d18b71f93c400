# SPDX-License-Identifier: BSD-2-Clause
"""Record a run in the history, compare it with earlier runs, and write its reports."""

from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from harness.errors import HarnessError
from harness.history.store import FILE, History, HistoryDamaged
from harness.results.model import RunResult
from harness.verdicts.values import Baseline, LastGreen

# The modules of the reports take half a second to import. `fxh report --site` uses few of them.
if TYPE_CHECKING:
    from harness.report.model import Report

log = logging.getLogger("fxh.report")


def publish(path: Path, run: RunResult) -> Report:
    """Record a finished run and write its reports. ``path`` is its directory.

    If the history cannot be used, the reports lack only the comparison.
    """
    record(path, run)
    report = build_report(path, run)
    write_reports(path, report)
    return report


def record(path: Path, run: RunResult) -> None:
    """Record a run in the history next to its directory. Logs a warning if that fails."""
    for _ in range(2):
        try:
            History(history_file(path)).record(run)
        except HistoryDamaged:
            continue
        except HarnessError as exc:
            log.warning("the run is not recorded in the history: %s (`fxh report` tries again)", exc.message)
        return


def build_report(
    path: Path,
    run: RunResult,
    *,
    baseline: Baseline = LastGreen(),  # noqa: B008 - a frozen value
) -> Report:
    """The report of the run in directory ``path``. If the history cannot be used, it has a note instead of a comparison."""
    from harness.report.gather import gather

    for _ in range(2):
        try:
            return gather(path, run, History(history_file(path)), baseline=baseline)
        except HistoryDamaged:
            continue
        except HarnessError as exc:
            return replace(gather(path, run, None), note=f"No comparison with earlier runs: {exc.message}")
    return gather(path, run, None)


def write_reports(path: Path, report: Report) -> None:
    """Write all reports of a run into its directory. If one cannot be written, logs a warning and writes the others."""
    from harness.report import allure_files, case_timeline, html, junit, machine, mail

    for name, write in (
        ("report.json", lambda file: file.write_text(machine.render(report), encoding="utf-8")),
        ("mail.eml", lambda file: file.write_bytes(mail.compose(report).as_bytes())),
        ("index.html", lambda file: file.write_text(html.render(path, report), encoding="utf-8")),
        ("cases", lambda file: case_timeline.write(file.parent, report)),
        ("junit.xml", lambda file: junit.enrich(file, report) if file.is_file() else None),
        ("allure", lambda file: allure_files.write(file, report) if file.is_dir() else None),
    ):
        try:
            write(path / name)
        except (OSError, ValueError) as exc:
            log.warning("%s: %s", path / name, exc.strerror if isinstance(exc, OSError) else exc)


def history_file(path: Path) -> Path:
    """The history of the run directory ``path``: ``reports/history.sqlite`` for ``reports/runs/NAME``."""
    return path.parent.parent / FILE
