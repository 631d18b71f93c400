# SPDX-License-Identifier: BSD-2-Clause
"""Many whole runs at once, for a page of all nights: only the columns that such a page shows, in one pass."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator
from typing import NamedTuple

from sqlalchemy import case as sql_case
from sqlalchemy import func, select

from harness.history.rows import issue_of_reason
from harness.history.schema import INPUTS, RESULTS
from harness.history.store import History
from harness.results.model import FAILED, HARNESS, KNOWN, PASSED, SKIPPED, KnownIssueMatch, Outcome

_OUTCOMES = {str(outcome): outcome for outcome in Outcome}


class Brief(NamedTuple):
    """A result without the parts that only its own report shows."""

    number: int
    suite: str
    case: str
    cell: str
    outcome: Outcome
    """As in the run's results."""
    reason: str
    """Empty for a case that passed or was skipped."""
    inputs: int
    """The number of its set of inputs, a key of :func:`hosts`."""
    metrics: str
    """JSON; empty for a case that did not pass."""
    issue: KnownIssueMatch | None


def fingerprints(history: History, numbers: Collection[int]) -> dict[int, str]:
    """A text for each of the runs that changes with its results: its digest, or else counts, times and lengths of texts."""
    digests = history.digests()
    left = [number for number in numbers if number not in digests]
    if not left:
        return digests
    r = RESULTS.c
    sums = (func.count(), func.sum(r.seconds), func.sum(func.length(r.outcome)), func.sum(func.length(r.reason)))
    names = func.sum(func.length(r.case) + func.length(r.cell))
    with history.reading() as connection:
        rows = connection.execute(select(r.run_id, *sums, names).where(r.run_id.in_(left)).group_by(r.run_id))
        return digests | {number: " ".join(str(value) for value in values) for number, *values in rows}


def briefs(history: History, numbers: Collection[int], measured: Collection[int]) -> Iterator[Brief]:
    """The results of the runs ``numbers``, in no order; metrics only of the runs ``measured``."""
    if not numbers:
        return
    r = RESULTS.c
    quiet = r.outcome.in_([PASSED.value, SKIPPED.value])
    reason = sql_case((quiet, ""), else_=r.reason)
    metrics = sql_case((r.run_id.in_(measured) & (r.outcome == PASSED.value), r.metrics), else_="")
    columns = (r.run_id, r.suite, r.case, r.cell, r.outcome, reason, r.inputs_id, metrics)
    # A range reads the table in the order of its pages; a list of numbers does not.
    query = select(*columns).where(r.run_id >= min(numbers), r.run_id <= max(numbers))
    wanted = frozenset(numbers)
    issues = history.known_issues(min(numbers), max(numbers))
    with history.reading() as connection:
        for number, suite, case, cell, name, why, inputs, measures in connection.execute(query):
            if number in wanted:
                outcome = _OUTCOMES.get(name, HARNESS)
                issue = None
                if outcome in (KNOWN, FAILED):
                    issue = issues.get((number, case, cell)) or issue_of_reason(outcome, why)
                yield Brief(number, suite, case, cell, outcome, why, inputs, measures, issue)


def hosts(history: History, numbers: Collection[int]) -> dict[int, tuple[str, str]]:
    """The host of each set of inputs, and why a case ran again on it, or ""."""
    with history.reading() as connection:
        used = select(RESULTS.c.inputs_id).where(RESULTS.c.run_id.in_(numbers)).distinct()
        rows = connection.execute(select(INPUTS).where(INPUTS.c.id.in_(used.scalar_subquery())))
        parsed = {row.id: json.loads(row.data) for row in rows}
    return {number: (data.get("host", ""), data.get("run again because", "")) for number, data in parsed.items()}
