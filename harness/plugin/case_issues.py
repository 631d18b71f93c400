# SPDX-License-Identifier: BSD-2-Clause
"""The known issues that cover a case in its cell."""

from __future__ import annotations

import functools
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

import pytest

from harness.plugin import known
from harness.plugin.cells import Cell, cell_of
from harness.plugin.outcome import PhaseResult
from harness.results.model import FAILED, ComplaintRecord, KnownIssueMatch


def matching(item: pytest.Item, result: PhaseResult) -> known.KnownIssue | None:
    """The known issue that explains ``result``."""
    if result.outcome != FAILED:
        return None
    identity = result.death.identity if result.death else ""
    return next((issue for issue in covering(item) if issue.excuses(result.reason, identity)), None)


def covering(item: pytest.Item) -> tuple[known.KnownIssue, ...]:
    """The known issues that cover the case in its cell."""
    cell = cell_of(item)
    return known.covering(_entries(item.path.parent.parent), _case_id(item, cell), cell) if cell is not None else ()


def mark_complaints(item: pytest.Item, found: Iterable[ComplaintRecord]) -> tuple[ComplaintRecord, ...]:
    """The complaints of the case, each with the known issue that covers it."""
    cell = cell_of(item)
    if cell is None:
        return tuple(found)
    issues, case = _entries(item.path.parent.parent), _case_id(item, cell)
    covers = ((one, known.find_complaint(issues, case, cell, one.identity, one.message)) for one in found)
    return tuple(replace(one, known_issue=KnownIssueMatch(issue.bug, issue.why) if issue else None) for one, issue in covers)


def _case_id(item: pytest.Item, cell: Cell) -> str:
    return known.case_id(item.path.parent.name, item.name.partition("[")[0], item.callspec.id, cell)  # type: ignore[attr-defined]


@functools.cache
def _entries(suites: Path) -> tuple[known.KnownIssue, ...]:
    return known.load(suites)
