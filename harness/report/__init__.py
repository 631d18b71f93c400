# SPDX-License-Identifier: BSD-2-Clause
"""What a run becomes: recorded in the history, judged beside it, and written as things that people and machines read."""

from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path

from harness.errors import HarnessError
from harness.history.store import FILE, History, HistoryDamaged
from harness.report import allure_files, html, junit, machine, mail
from harness.report.gather import Report, gather
from harness.results.model import RunResult
from harness.verdicts.values import Baseline, LastGreen

log = logging.getLogger("fxh.report")


def publish(path: Path, run: RunResult) -> Report:
    """At the end of a run: remember it and write its reports. A history that fails costs the comparison, never the run."""
    remember(path, run)
    report = make(path, run)
    write(path, report)
    return report


def remember(path: Path, run: RunResult) -> None:
    """Record a run in the history beside its directory; says so when that cannot be."""
    for _ in range(2):
        try:
            History(history_file(path)).record(run)
        except HistoryDamaged:
            continue
        except HarnessError as exc:
            log.warning("the run is not in the history: %s (`fxh report` tries again)", exc.message)
        return


def make(
    path: Path,
    run: RunResult,
    *,
    baseline: Baseline = LastGreen(),  # noqa: B008 - a frozen value
) -> Report:
    """The run in directory ``path`` as a report; without comparison, and saying so, when there is no history to be had."""
    for _ in range(2):
        try:
            return gather(path, run, History(history_file(path)), baseline=baseline)
        except HistoryDamaged:
            continue
        except HarnessError as exc:
            return replace(gather(path, run, None), note=f"Compared with nothing: {exc.message}")
    return gather(path, run, None)


def write(path: Path, report: Report) -> None:
    """Write all reports of a run into its directory. One that the disk will not take costs none of the others."""
    for name, act in (
        ("report.json", lambda file: file.write_text(machine.render(report), encoding="utf-8")),
        ("mail.eml", lambda file: file.write_bytes(mail.compose(report).as_bytes())),
        ("index.html", lambda file: file.write_text(html.render(path, report), encoding="utf-8")),
        ("junit.xml", lambda file: junit.enrich(file, report) if file.is_file() else None),
        ("allure", lambda file: allure_files.write(file, report) if file.is_dir() else None),
    ):
        try:
            act(path / name)
        except OSError as exc:
            log.warning("%s: %s", path / name, exc.strerror)


def history_file(path: Path) -> Path:
    """The history that the run directory ``path`` belongs to: ``reports/history.sqlite`` for ``reports/runs/NAME``."""
    return path.parent.parent / FILE
