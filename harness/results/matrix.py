# SPDX-License-Identifier: BSD-2-Clause
"""The matrix of docs/suites.md: the results of the suites by FreeBSD release, guest type and Xen version.

``docs/matrix.json`` has one record for each suite of a cell. These records are committed; reports are not.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any

from harness import versions
from harness.errors import UsageError
from harness.results import revision
from harness.results.merge import missing_shards
from harness.results.model import FAILED, KNOWN, PASSED, SKIPPED, CaseResult, Outcome, RunResult
from harness.results.where import FREEBSD, Where

SCHEMA = 1
BEGIN, END = "<!-- matrix: written by `fxh matrix`, do not edit -->", "<!-- end of the matrix -->"
NOT_RUN = "not run"
# The combinations to test. Others that were recorded get additional rows and columns.
RELEASES, TYPES, XEN = ("13.2", "14.2", "15.1"), ("pvh", "hvm", "hvm-uefi"), ("4.17", "4.20")
_TITLES = {"pvh": "PVH", "hvm": "HVM BIOS", "hvm-uefi": "HVM UEFI", "pv": "PV", "pvshim": "PV shim"}


@dataclass(frozen=True)
class Place:
    """A cell of the matrix. ``type`` is as in :data:`TYPES`; ``xen`` is, for example, ``4.20``."""

    freebsd: str
    """A release (``15.1``), or the kernel's and the world's (``15.1 on world 13.2``)."""
    type: str
    xen: str

    @property
    def order(self) -> tuple[object, ...]:
        known = TYPES.index(self.type) if self.type in TYPES else len(TYPES)
        return (versions.numbers(self.freebsd), known, self.type, versions.numbers(self.xen))

    def __str__(self) -> str:
        return f"{self.freebsd} {_TITLES.get(self.type, self.type)} {self.xen}"


@dataclass(frozen=True)
class Record:
    """The results of one suite in one cell. ``started`` is UTC; ``known`` maps cases to their known issue.

    ``unjudged`` are cases without a judgement (infrastructure, or a bug of the harness). ``absent`` counts cases of the suite
    that the run did not have.
    """

    freebsd: str
    type: str
    xen: str
    suite: str
    run: str
    started: str
    commit: str
    passed: int = 0
    skipped: int = 0
    known: Mapping[str, str] = field(default_factory=dict)
    failed: tuple[str, ...] = ()
    unjudged: tuple[str, ...] = ()
    absent: int = 0

    @property
    def place(self) -> Place:
        return Place(self.freebsd, self.type, self.xen)


# -- from a run -------------------------------------------------------------------------------------------------------

# kernel (FreeBSD 15.1-RELEASE-p1 XENA) sha256:0123
_KERNEL = re.compile(r"\(FreeBSD (\d+\.\d+)-")
# 4.20.1-pre
_XEN = re.compile(r"(\d+\.\d+)(?:\D|$)")


def records(run: RunResult, expected: Mapping[tuple[str, str], Collection[str]], *, freebsd: str = "") -> tuple[Record, ...]:
    """The records of a run's suites, for cells with a FreeBSD guest.

    ``expected`` are the cases (``suite/case[parameters]``) by suite and type (pvh, hvm). ``freebsd`` is the release, for a run
    without this information. Raises UsageError for an unfinished run, and for a run without a FreeBSD guest.
    """
    if not run.ended:
        raise UsageError(f"run {run.run} is not finished", hint=f"finish it with `fxh run --resume {run.run}`")
    missing = missing_shards(run.inputs.get("shard", "").split(" | "))
    if missing:
        hint = "join all shards with `fxh merge`, then record the merged run"
        raise UsageError(f"run {run.run} lacks shards {', '.join(missing)}", hint=hint)
    cells = sorted({case.where for case in run.cases if _is_freebsd(case)})
    if not cells:
        hint = "the matrix lists FreeBSD guests only; run `fxh run --image IMAGE`"
        raise UsageError(f"run {run.run} has no FreeBSD guest", hint=hint)
    found = []
    for cell in cells:
        in_cell = [case for case in run.cases if case.where == cell]
        place = _place(run, cell, in_cell, freebsd)
        for suite in sorted({case.suite for case in in_cell}):
            cases = [case for case in in_cell if case.suite == suite]
            names = {case_name(case) for case in cases}
            all_cases = expected.get((suite, cell.type), ())
            found.append(_record(run, place, suite, cases, len(set(all_cases) - names)))
    return tuple(found)


def case_name(case: CaseResult) -> str:
    """The case's name in known_issues.toml: ``boot/test_control_shutdown[halt]``."""
    return f"{case.suite}/{case.key.rpartition('::')[2]}"


def _is_freebsd(case: CaseResult) -> bool:
    return case.where.guest == FREEBSD


def _record(run: RunResult, place: Place, suite: str, cases: list[CaseResult], absent: int) -> Record:
    def named(*outcomes: Outcome) -> tuple[str, ...]:
        return tuple(sorted(case_name(case) for case in cases if case.outcome in outcomes))

    rest = {case.outcome for case in cases} - {PASSED, FAILED, SKIPPED, KNOWN}
    return Record(
        **asdict(place), suite=suite, run=run.run, started=run.started, commit=_commit(run.inputs.get("harness", "")),
        passed=len(named(PASSED)), skipped=len(named(SKIPPED)), failed=named(FAILED), unjudged=named(*rest),
        known={case_name(case): case.known_issue.bug for case in cases if case.outcome == KNOWN and case.known_issue},
        absent=absent,
    )  # fmt: skip


def _place(run: RunResult, cell: Where, cases: list[CaseResult], freebsd: str) -> Place:
    # If all cases of a cell were skipped, they have no kernel among their inputs. Other cells of the run had the same one.
    kernels = _kernels(cases) or _kernels(run.cases)
    worlds = {case.inputs["world"].removeprefix("FreeBSD ") for case in run.cases if "world" in case.inputs}
    xens = {found[1] for case in cases if (found := _XEN.match(case.inputs.get("xen", "")))}
    kernels = {freebsd} if freebsd else kernels
    xens = xens or {cell.xen} - {""}
    for what, values, hint in (
        ("FreeBSD release", kernels, "name the release with --freebsd RELEASE"),
        ("Xen version", xens, "record a run with a single Xen version"),
    ):
        if len(values) != 1:
            seen = f"{', '.join(sorted(values))}" if values else "none"
            raise UsageError(f"run {run.run}, cell {cell}: needs exactly one {what}, has {seen}", hint=hint)
    world = f" on world {'/'.join(sorted(worlds))}" if worlds - kernels else ""
    return Place(kernels.pop() + world, "-".join(filter(None, (cell.type, cell.firmware))), xens.pop())


def _kernels(cases: Iterable[CaseResult]) -> set[str]:
    """The releases of the FreeBSD kernels that the cases ran."""
    named = (_KERNEL.search(case.inputs.get("kernel", "")) for case in cases if _is_freebsd(case))
    return {found[1] for found in named if found}


def _commit(harness: str) -> str:
    """The short commit in the run's input ``harness``. A merged run has one for each part."""
    return " ".join(dict.fromkeys(revision.short(part) for part in harness.split(" | ")))


# -- the data file ----------------------------------------------------------------------------------------------------


def merge(old: Iterable[Record], new: Iterable[Record]) -> tuple[Record, ...]:
    """The records in a fixed order. If a suite has several in a cell, the one whose run started last counts."""
    best: dict[tuple[Place, str], Record] = {}
    for record in (*old, *new):
        key = (record.place, record.suite)
        if key not in best or record.started >= best[key].started:
            best[key] = record
    return tuple(sorted(best.values(), key=lambda record: (record.place.order, record.suite)))


def dump(data: Iterable[Record]) -> str:
    """JSON with one line for each record, so that a diff shows the changed records."""
    lines = ",\n".join(json.dumps(asdict(record), sort_keys=True) for record in data)
    return f'{{"schema": {SCHEMA}, "records": [\n{lines}\n]}}\n'


def parse(text: str) -> tuple[Record, ...]:
    """The records of a file that :func:`dump` wrote. Raises UsageError for other content."""
    try:
        data = json.loads(text)
        if data["schema"] != SCHEMA:
            raise UsageError(
                f"docs/matrix.json has schema {data['schema']}; this harness reads {SCHEMA}", hint="use the harness that wrote it"
            )
        return merge((), map(_parsed, data["records"]))
    except (ValueError, KeyError, TypeError) as exc:
        raise UsageError(
            f"docs/matrix.json: {exc}", hint="restore it with `git checkout docs/matrix.json`, then record the runs again"
        ) from exc


def _parsed(data: dict[str, Any]) -> Record:
    lists = {name: tuple(data[name]) for name in ("failed", "unjudged")}
    unknown = data.keys() - {item.name for item in fields(Record)}
    if unknown:
        raise ValueError(f"unknown keys {', '.join(sorted(unknown))}")
    return Record(**data | lists)


# -- the table --------------------------------------------------------------------------------------------------------


def render(data: Iterable[Record], suites: Collection[str]) -> str:
    """The table in Markdown, followed by the names of cases that did not pass.

    ``suites`` are the names of all suites. A cell without records of all of them lists the suites that it has.
    """
    cells: dict[Place, list[Record]] = {}
    for record in data:
        cells.setdefault(record.place, []).append(record)
    rows = {(freebsd, kind) for freebsd in RELEASES for kind in TYPES} | {(place.freebsd, place.type) for place in cells}
    xens = sorted({*XEN, *(place.xen for place in cells)}, key=versions.numbers)
    lines = ["| FreeBSD | guest type | " + " | ".join(f"Xen {xen}" for xen in xens) + " |", "|---" * (2 + len(xens)) + "|"]
    for freebsd, kind in sorted(rows, key=lambda row: Place(row[0], row[1], "").order):
        columns = [_cell(cells.get(Place(freebsd, kind, xen), []), suites) for xen in xens]
        lines.append(f"| {freebsd} | {_TITLES.get(kind, kind)} | {' | '.join(columns)} |")
    for title, rows_of in (("Failed", _failed), ("Not judged", _unjudged), ("Known issues", _known)):
        lines += _named(title, rows_of, cells)
    return "\n".join(lines) + "\n"


def _cell(recorded: list[Record], suites: Collection[str]) -> str:
    if not recorded:
        return NOT_RUN
    commits = dict.fromkeys(
        word for record in sorted(recorded, key=lambda record: record.started) for word in record.commit.split()
    )
    bad = sum(len(record.failed) for record in recorded)
    counts = [
        f"**{bad} failed**" if bad else "",
        f"{sum(record.passed for record in recorded)} passed",
        f"{sum(len(record.known) for record in recorded)} known",
        f"{sum(record.skipped for record in recorded)} skipped",
        *(f"{count} {words}" for count, words in (
            (sum(len(record.unjudged) for record in recorded), "not judged"), (sum(record.absent for record in recorded), NOT_RUN),
        ) if count),
    ]  # fmt: skip
    lacking = set(suites) - {record.suite for record in recorded}
    only = f" ({', '.join(sorted(record.suite for record in recorded))} only)" if lacking else ""
    head = f"{max(record.started for record in recorded)[:10]} {' '.join(f'`{commit}`' for commit in commits)}"
    return f"{head}: {', '.join(filter(None, counts))}{only}"


def _failed(record: Record) -> dict[str, str]:
    return dict.fromkeys(record.failed, "")


def _unjudged(record: Record) -> dict[str, str]:
    return dict.fromkeys(record.unjudged, "")


def _known(record: Record) -> Mapping[str, str]:
    return record.known


def _named(title: str, rows_of: Callable[[Record], Mapping[str, str]], cells: Mapping[Place, list[Record]]) -> list[str]:
    """A line for each case, with its bug and the cells in which it occurred."""
    places: dict[tuple[str, str], list[Place]] = {}
    ran: dict[str, set[Place]] = {}
    for place, recorded in sorted(cells.items(), key=lambda item: item[0].order):
        for record in recorded:
            ran.setdefault(record.suite, set()).add(place)
            for case, bug in rows_of(record).items():
                places.setdefault((case, bug), []).append(place)
    if not places:
        return []
    lines = ["", f"{title}:", ""]
    for (case, bug), seen in sorted(places.items()):
        suite = case.partition("/")[0]
        where = f"every cell that ran {suite}" if set(seen) == ran[suite] else ", ".join(map(str, seen))
        lines.append(f"- `{case}`{f' ({bug})' if bug else ''}: {where}")
    return lines


def insert(document: str, table: str) -> str:
    """``document`` with ``table`` between the markers. Raises UsageError unless it has each marker exactly once, in order."""
    if document.count(BEGIN) != 1 or document.count(END) != 1 or document.index(BEGIN) > document.index(END):
        hint = f"add these lines where the matrix belongs:\n{BEGIN}\n{END}"
        raise UsageError("docs/suites.md has no place for the matrix", hint=hint)
    return f"{document.partition(BEGIN)[0]}{BEGIN}\n\n{table}\n{END}{document.partition(END)[2]}"
