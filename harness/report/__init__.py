# SPDX-License-Identifier: BSD-2-Clause
"""Record a run in the history, compare it with earlier runs, and write its reports."""

from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from harness.errors import HarnessError
from harness.history.delivery import history_of, record
from harness.history.sqlite import HistoryDamaged
from harness.results import run_dir
from harness.results.merge import missing_shards
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
            report = gather(path, run, history_of(path.parent.parent), baseline=baseline)
        except HistoryDamaged:
            continue
        except HarnessError as exc:
            note = f"No comparison with earlier runs (infrastructure, not a failure of the product): {exc.message}. {exc.hint}."
            return replace(gather(path, run, None), note=note)
        return replace(report, note=_note(path, run))
    return gather(path, run, None)


def _note(path: Path, run: RunResult) -> str:
    """Parts of the run that are missing for a reason of the infrastructure, and who must act."""
    parts = []
    if run.parts and (missing := missing_shards(run.inputs.get("shard", "").split(" | "))):
        parts.append(
            f"The shards {', '.join(missing)} are missing: their cases were not run. Run these CI jobs again, and merge again."
        )
    if (path / run_dir.UNDELIVERED).exists():
        parts.append("The history does not have this run yet (infrastructure): see undelivered.txt.")
    return " ".join(parts)


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
