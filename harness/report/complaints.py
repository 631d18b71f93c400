# SPDX-License-Identifier: BSD-2-Clause
"""Complaints of this run that no earlier run had in the same cell."""

from __future__ import annotations

from collections.abc import Mapping

from harness.report.model import NewComplaint
from harness.results.model import CaseResult, ComplaintRecord, RunResult


def new_complaints(run: RunResult, past: Mapping[str, frozenset[str]]) -> tuple[NewComplaint, ...]:
    """By cell and identity. ``past`` are the identities of earlier runs by cell; a cell that is not in it has no baseline."""
    found: dict[tuple[str, str], tuple[ComplaintRecord, list[CaseResult]]] = {}
    for case in run.cases:
        for complaint in (case.complaints or ()) if case.cell in past else ():
            if complaint.identity not in past[case.cell]:
                found.setdefault((case.cell, complaint.identity), (complaint, []))[1].append(case)
    return tuple(NewComplaint(complaint, cell, tuple(cases)) for (cell, _), (complaint, cases) in sorted(found.items()))
