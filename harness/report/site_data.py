# SPDX-License-Identifier: BSD-2-Clause
"""The data of the site: a summary of each run, and over all runs the known issues and the faults of hosts."""

from __future__ import annotations

import json
import tomllib
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import date
from functools import cached_property
from pathlib import Path
from typing import Any

from harness.history import nights
from harness.history.rows import Run
from harness.history.store import History
from harness.report.trends import BOOTS
from harness.results.model import HARNESS, INFRASTRUCTURE, OUTCOMES, PASSED, SKIPPED, Outcome

_NOTHING = [0] * len(OUTCOMES)
_PLACES = {outcome: place for place, outcome in enumerate(OUTCOMES)}
# Faults that a summary keeps, and the length of a fault's text.
_FAULTS, _TEXT = 20, 300


@dataclass
class Summary:
    """A run. The state file of the site has it as JSON, so its parts are lists and dicts."""

    run: str
    started: str
    ended: str = ""
    branch: str = ""
    cells: list[str] = field(default_factory=list)
    packed: str = "{}"
    """``counts`` as JSON. Most runs are too old for any page that changes, so most are never parsed."""
    metrics: dict[str, dict[str, float]] = field(default_factory=dict)
    """By cell: the stages of the boot to login as ``stage NAME`` (s), other metrics as ``CASE: NAME``."""
    known: list[list[Any]] = field(default_factory=list)
    """[bug, why, gone, case, cell]"""
    hosts: dict[str, list[int]] = field(default_factory=dict)
    """By host: results, and faults of the infrastructure."""
    faults: list[list[str]] = field(default_factory=list)
    """[host, cell, case, text]"""

    @cached_property
    def counts(self) -> dict[str, dict[str, list[int]]]:
        """Results by cell and suite, in the order of OUTCOMES."""
        found: dict[str, dict[str, list[int]]] = json.loads(self.packed)
        return found

    @property
    def night(self) -> str:
        """The day on which it started, UTC: ``2026-11-25``."""
        return self.started[:10]

    def outcomes(self) -> dict[Outcome, int]:
        """The number of results of each outcome."""
        return named([sum(column) for column in zip(*(self.total(cell) for cell in self.cells), strict=True)])

    def total(self, cell: str, suite: str = "") -> list[int]:
        """The results in a cell, of all suites or of one, in the order of OUTCOMES."""
        suites = self.counts.get(cell, {})
        if suite:
            return suites.get(suite, _NOTHING)
        return [sum(column) for column in zip(*suites.values(), strict=True)] or _NOTHING

    def dump(self) -> dict[str, Any]:
        """As JSON values; shares the parts."""
        return {name: value for name, value in vars(self).items() if name != "counts"}


def named(counts: Iterable[int]) -> dict[Outcome, int]:
    """Counts in the order of OUTCOMES, by outcome and without zeros."""
    return {outcome: count for outcome, count in zip(OUTCOMES, counts, strict=False) if count}


@dataclass(frozen=True)
class Bad:
    """A result of a run that neither passed nor was skipped."""

    case: str
    cell: str
    outcome: Outcome
    reason: str


def summarise(history: History, runs: Collection[Run], measured: Collection[int]) -> dict[int, tuple[Summary, list[Bad]]]:
    """The summary of each run by number, with its bad results. Metrics only of the runs ``measured``."""
    found = {run.number: (Summary(run.run, run.started, run.ended, run.branch), list[Bad]()) for run in runs}
    counts: Counter[tuple[int, str, str, Outcome]] = Counter()
    used: Counter[tuple[int, int]] = Counter()
    faults: list[nights.Brief] = []
    for brief in nights.briefs(history, found.keys(), measured):
        number, suite, case, cell, outcome = brief[:5]
        counts[number, cell, suite, outcome] += 1
        used[number, brief.inputs] += 1
        if outcome not in (PASSED, SKIPPED):
            summary, bad = found[number]
            bad.append(Bad(case, cell, outcome, brief.reason))
            if issue := brief.issue:
                summary.known.append([issue.bug, issue.why, issue.gone, case, cell])
            if outcome in (INFRASTRUCTURE, HARNESS):
                faults.append(brief)
        elif brief.metrics:
            _measure(found[number][0], cell, case, brief.metrics)
    tables: dict[int, dict[str, dict[str, list[int]]]] = {number: {} for number in found}
    for (number, cell, suite, outcome), count in counts.items():
        suites = tables[number].setdefault(cell, {})
        suites.setdefault(suite, [0] * len(OUTCOMES))[_PLACES[outcome]] = count
    for number, (summary, _) in found.items():
        summary.cells = sorted(tables[number])
        summary.packed = json.dumps(tables[number], sort_keys=True, separators=(",", ":"))
    _add_hosts(found, used, faults, nights.hosts(history, found.keys()))
    for summary, bad in found.values():
        # The database has no order.
        summary.known.sort()
        summary.faults = sorted(summary.faults)[:_FAULTS]
        bad.sort(key=lambda item: (item.cell, item.case))
    return found


def _measure(summary: Summary, cell: str, case: str, raw: str) -> None:
    # Most cases have nothing but stages, and only those of one case are shown.
    if case != BOOTS and raw.count('": ') == raw.count('"stage '):
        return
    values = summary.metrics.setdefault(cell, {})
    for name, value in json.loads(raw).items():
        if name.startswith("stage "):
            if case == BOOTS:
                values[name] = round(value, 3)
        else:
            values[f"{case}: {name}"] = round(value, 4)


def _add_hosts(
    found: Mapping[int, tuple[Summary, list[Bad]]],
    used: Mapping[tuple[int, int], int],
    faults: Iterable[nights.Brief],
    hosts: Mapping[int, tuple[str, str]],
) -> None:
    for (number, inputs), count in used.items():
        host, again = hosts.get(inputs, ("", ""))
        summary = found[number][0]
        if host:
            summary.hosts.setdefault(host, [0, 0])[0] += count
        if again:
            summary.faults.append([host, "", "", f"a case ran again here after it lost its host: {again}"[:_TEXT]])
    for brief in faults:
        host = hosts.get(brief.inputs, ("", ""))[0]
        summary = found[brief.number][0]
        summary.faults.append([host, brief.cell, brief.case, brief.reason.partition("\n")[0][:_TEXT]])
        if host:
            summary.hosts[host][1] += 1


# -- over all runs ----------------------------------------------------------------------------------------------------


@dataclass
class Issue:
    """A known issue over all runs."""

    bug: str
    why: str
    last: Summary
    since: str
    """The first observation, which may be older than the history."""
    gone: bool = False
    """The case passed in the last run that had it."""
    cases: set[str] = field(default_factory=set)
    cells: set[str] = field(default_factory=set)

    @cached_property
    def some_cases(self) -> str:
        return _some(self.cases, 4)

    @cached_property
    def some_cells(self) -> str:
        return _some(self.cells, 6)

    def shown(self) -> list[Any]:
        """All that a page shows of it, as JSON values."""
        return [self.bug, self.why, self.since, self.last.run, self.last.night, self.gone, sorted(self.cases), sorted(self.cells)]

    @property
    def days(self) -> int:
        """The age in days, from the first observation to the last."""
        try:
            return (date.fromisoformat(self.last.night) - date.fromisoformat(self.since)).days
        except ValueError:
            return 0


def _some(names: Collection[str], count: int) -> str:
    """The first names; "and 3 more" for the others."""
    more = f" and {len(names) - count} more" if len(names) > count else ""
    return ", ".join(sorted(names)[:count]) + more


def issues(runs: Iterable[Summary], since: Mapping[tuple[str, str], str]) -> list[Issue]:
    """The known issues that ``runs``, oldest first, saw; the oldest issue first."""
    found: dict[tuple[str, str], Issue] = {}
    for run in runs:
        for bug, why, gone, case, cell in run.known:
            issue = found.get((bug, why))
            if issue is None:
                first = min(filter(None, (run.night, since.get((bug, why), ""))))
                issue = found[bug, why] = Issue(bug, why, run, first, gone)
            # One run may have an issue in one cell and miss it in another.
            issue.gone = gone and (issue.gone or issue.last is not run)
            issue.last = run
            issue.cases.add(case)
            issue.cells.add(cell)
    return sorted(found.values(), key=lambda issue: (issue.since, issue.bug, issue.why))


def recorded_since(suites: Path) -> dict[tuple[str, str], str]:
    """The day of the first observation of each entry of known_issues.toml in ``suites``, by bug and reason."""
    try:
        entries = tomllib.loads((suites / "known_issues.toml").read_text()).get("issue", [])
    except (OSError, tomllib.TOMLDecodeError):
        return {}
    return {(entry.get("bug", ""), entry.get("why", "")): str(entry.get("since", "")) for entry in entries}


@dataclass
class Host:
    """A host over all runs: its results and faults, and the latest faults with their runs."""

    name: str
    runs: int = 0
    results: int = 0
    faults: int = 0
    latest: list[tuple[Summary, str]] = field(default_factory=list)
    """The latest faults, newest first."""


def hosts(runs: Sequence[Summary], shown: int) -> list[Host]:
    """The hosts of ``runs``, oldest first, with up to ``shown`` faults each; the one with the most faults first."""
    found: dict[str, Host] = {}
    for run in runs:
        for name, (results, faults) in run.hosts.items():
            host = found.setdefault(name, Host(name))
            host.runs += 1
            host.results += results
            host.faults += faults
        for name, cell, case, text in run.faults:
            host = found.setdefault(name or "before a host was known", Host(name or "before a host was known"))
            if not name:
                host.faults += 1
            where = f"{case} in {cell}: " if case else ""
            host.latest.insert(0, (run, where + text))
            del host.latest[shown:]
    return sorted(found.values(), key=lambda host: (-host.faults, host.name))
