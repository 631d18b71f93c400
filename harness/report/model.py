# SPDX-License-Identifier: BSD-2-Clause
"""The values that page, mail, JSON, JUnit and allure files are rendered from."""

from __future__ import annotations

from dataclasses import dataclass

from harness.report.boot_consoles import ConsoleChange
from harness.report.trends import Trend
from harness.results.model import CaseResult, ComplaintRecord, Outcome, RunResult, Stamp
from harness.trace import Event
from harness.verdicts.drift import Drift
from harness.verdicts.run_verdicts import Key
from harness.verdicts.values import Verdict


@dataclass(frozen=True)
class CaseReport:
    """One case of the run, with its verdict and its history."""

    result: CaseResult
    verdict: Verdict
    drifts: tuple[Drift, ...] = ()
    strip: tuple[tuple[str, Outcome], ...] = ()
    """(run, outcome) of the last runs, oldest first. This run is the last one."""
    usual: tuple[Stamp, ...] = ()
    """Stages of the boot in the last run that passed, ``usual_run``."""
    usual_run: str = ""
    rerun: str = ""
    """The command that runs this case alone, with the same inputs."""
    config: str = ""
    """The domain's configuration, for a failed case."""
    backtrace: str = ""
    """The death's backtrace with source files and lines, for a failed case."""
    events: tuple[Event, ...] = ()
    """The action trace of a failed case."""


@dataclass(frozen=True)
class SetupReport:
    """A setup step of the run (results.model.SetupStep)."""

    what: str
    seconds: float
    """The longest time that a worker waited for it."""
    started: str
    """UTC."""
    cases: tuple[CaseResult, ...] = ()
    """The cases that waited for it."""
    drift: Drift | None = None
    """Set if ``seconds`` differs from earlier runs."""


@dataclass(frozen=True)
class ComplaintReport:
    """A complaint in one cell of the run, and the cases that saw it."""

    complaint: ComplaintRecord
    cell: str
    cases: tuple[CaseResult, ...]


@dataclass(frozen=True)
class SuiteRun:
    """The outcomes of a suite in one cell of one run."""

    run: str
    worst: Outcome | None
    """None if the suite did not run."""
    counts: tuple[tuple[int, Outcome], ...]


@dataclass(frozen=True)
class MatrixRow:
    """A suite in a cell, with its outcomes in the last runs, oldest first."""

    suite: str
    cell: str
    runs: tuple[SuiteRun, ...]


@dataclass(frozen=True)
class Report:
    """A run with its verdicts."""

    run: RunResult
    sentence: str
    """The run in one sentence."""
    baseline: str
    cases: tuple[CaseReport, ...]
    matrix: tuple[MatrixRow, ...] = ()
    runs: tuple[str, ...] = ()
    """The last runs, oldest first. This run is the last one."""
    trends: tuple[Trend, ...] = ()
    gone: tuple[Key, ...] = ()
    """Cases of the run before that this run does not have."""
    inputs: tuple[tuple[str, str], ...] = ()
    changed: tuple[tuple[str, str, str], ...] = ()
    """(input, before, now) for inputs that differ from each case's result before."""
    note: str = ""
    """Why there is no comparison, or empty."""
    setup: tuple[SetupReport, ...] = ()
    """By start time."""
    complaints: tuple[ComplaintReport, ...] = ()
    """Those that no earlier run had in their cell, without known ones."""
    known_complaints: tuple[ComplaintReport, ...] = ()
    """Those that suites/known_issues.toml covers."""
    console_changes: tuple[ConsoleChange, ...] = ()
    """Filled in only if a case failed."""

    @property
    def news(self) -> tuple[CaseReport, ...]:
        """The cases that a report shows first."""
        return tuple(item for item in self.cases if item.verdict.is_news)
