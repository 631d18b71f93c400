# SPDX-License-Identifier: BSD-2-Clause
"""Complaints of this run: those that no earlier run had in the same cell, and known ones."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from harness.report.model import ComplaintReport
from harness.results.model import CaseResult, ComplaintRecord, RunResult


def new_complaints(run: RunResult, past: Mapping[str, frozenset[str]]) -> tuple[ComplaintReport, ...]:
    """By cell and identity. ``past`` are the identities of earlier runs by cell; a cell that is not in it has no baseline."""

    def is_new(case: CaseResult, complaint: ComplaintRecord) -> bool:
        return complaint.known_issue is None and case.cell in past and complaint.identity not in past[case.cell]

    return _collect(run, is_new)


def known_complaints(run: RunResult) -> tuple[ComplaintReport, ...]:
    """Those that suites/known_issues.toml covers, by cell and identity."""
    return _collect(run, lambda _, complaint: complaint.known_issue is not None)


def _collect(run: RunResult, wanted: Callable[[CaseResult, ComplaintRecord], bool]) -> tuple[ComplaintReport, ...]:
    found: dict[tuple[str, str], tuple[ComplaintRecord, list[CaseResult]]] = {}
    for case in run.cases:
        for complaint in case.complaints or ():
            if wanted(case, complaint):
                found.setdefault((case.cell, complaint.identity), (complaint, []))[1].append(case)
    return tuple(ComplaintReport(complaint, cell, tuple(cases)) for (cell, _), (complaint, cases) in sorted(found.items()))
