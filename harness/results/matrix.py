# SPDX-License-Identifier: BSD-2-Clause
"""The matrix of docs/suites.md: which suites ran on which FreeBSD, guest type and Xen, and what came out.

``docs/matrix.json`` keeps one record for each suite of a cell. Reports are not committed; the records are.
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
from harness.results.model import FAILED, KNOWN, KNOWN_WORDS, PASSED, SKIPPED, CaseResult, RunResult

SCHEMA = 1
BEGIN, END = "<!-- matrix: written by `fxh matrix`, do not edit -->", "<!-- end of the matrix -->"
NOT_RUN = "not run"
# What shall be tested; whatever else was recorded gets rows and columns of its own.
FREEBSD, TYPES, XEN = ("13.2", "14.2", "15.1"), ("pvh", "hvm", "hvm-uefi"), ("4.17", "4.20")
_TITLES = {"pvh": "PVH", "hvm": "HVM BIOS", "hvm-uefi": "HVM UEFI", "pv": "PV", "pvshim": "PV shim"}


@dataclass(frozen=True)
class Place:
    """``freebsd`` is a release (``15.1``), or two (``15.1 on world 13.2``); ``type`` as in :data:`TYPES`; ``xen`` is ``4.20``."""

    freebsd: str
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
    """One suite in one cell. ``started`` is UTC; ``known`` maps cases to the known issue that they showed.

    ``unjudged`` are cases of which nothing was learned (infrastructure, a bug of the harness); ``absent`` counts cases that the
    suite has and the run had not.
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

# freebsd-pvh-xen-4.20      freebsd-hvm-uefi-xen-4.20      freebsd-15.1-hvm-bios-xen-4.17      freebsd-pvh-myhost
_CELL = re.compile(
    r"freebsd(?:-(?P<release>\d+\.\d+))?-(?P<type>pvh|hvm|pvshim|pv)(?:-(?P<firmware>uefi|ovmf|bios|seabios))?-(?P<host>.+)"
)
# kernel (FreeBSD 15.1-RELEASE-p1 XENA) sha256:0123
_KERNEL = re.compile(r"\(FreeBSD (\d+\.\d+)-")
# 4.20.1-pre     xen-4.20
_XEN = re.compile(r"(?:xen-)?(\d+\.\d+)(?:\D|$)")


def records(run: RunResult, expected: Mapping[tuple[str, str], Collection[str]], *, freebsd: str = "") -> tuple[Record, ...]:
    """The run's suites in FreeBSD's cells. ``expected`` are the cases (``suite/case[parameters]``) by suite and type (pvh, hvm).

    ``freebsd`` is the release where the run does not tell it. Raises UsageError for a run that is not over or has no such cell.
    """
    if not run.ended:
        raise UsageError(f"run {run.run} did not come to its end", hint=f"fxh run --resume {run.run}")
    missing = missing_shards(run.inputs.get("shard", "").split(" | "))
    if missing:
        raise UsageError(f"run {run.run} lacks shards {', '.join(missing)}", hint="join all of them by fxh merge, record that run")
    cells = sorted({case.cell for case in run.cases if _CELL.fullmatch(case.cell)})
    if not cells:
        raise UsageError(f"run {run.run} has no FreeBSD guest", hint="the matrix is about FreeBSD: fxh run --image IMAGE")
    found = []
    for cell in cells:
        here = [case for case in run.cases if case.cell == cell]
        place = _place(run, cell, here, freebsd)
        for suite in sorted({case.suite for case in here}):
            cases = [case for case in here if case.suite == suite]
            names = {case_name(case) for case in cases}
            wanted = expected.get((suite, place.type.partition("-")[0]), ())
            found.append(_record(run, place, suite, cases, len(set(wanted) - names)))
    return tuple(found)


def case_name(case: CaseResult) -> str:
    """What known_issues.toml calls a case: ``boot/test_control_shutdown[halt]``."""
    return f"{case.suite}/{case.key.rpartition('::')[2]}"


def _record(run: RunResult, place: Place, suite: str, cases: list[CaseResult], absent: int) -> Record:
    def named(*outcomes: str) -> tuple[str, ...]:
        return tuple(sorted(case_name(case) for case in cases if case.outcome in outcomes))

    rest = {case.outcome for case in cases} - {PASSED, FAILED, SKIPPED, KNOWN}
    return Record(
        **asdict(place), suite=suite, run=run.run, started=run.started, commit=_commit(run.inputs.get("harness", "")),
        passed=len(named(PASSED)), skipped=len(named(SKIPPED)), failed=named(FAILED), unjudged=named(*rest),
        known={case_name(case): _issue(case.reason) for case in cases if case.outcome == KNOWN}, absent=absent,
    )  # fmt: skip


def _place(run: RunResult, cell: str, cases: list[CaseResult], freebsd: str) -> Place:
    match = _CELL.fullmatch(cell)
    assert match is not None
    # A cell whose cases were all skipped names no kernel; it was that of the run's other cells.
    kernels = _kernels(cases) or _kernels(run.cases)
    worlds = {case.inputs["world"].removeprefix("FreeBSD ") for case in run.cases if "world" in case.inputs}
    xens = {found[1] for case in cases if (found := _XEN.match(case.inputs.get("xen", "")))}
    kernels = {freebsd} if freebsd else kernels or {match["release"] or ""} - {""}
    xens = xens or {found[1] for found in [_XEN.match(match["host"])] if found}
    for what, values, option in (("FreeBSD release", kernels, "--freebsd RELEASE"), ("Xen version", xens, "a run on one Xen")):
        if len(values) != 1:
            raise UsageError(
                f"run {run.run}, cell {cell}: {len(values)} of a {what}: {', '.join(sorted(values)) or 'none'}", hint=option
            )
    world = f" on world {'/'.join(sorted(worlds))}" if worlds - kernels else ""
    uefi = match["firmware"] in ("uefi", "ovmf")
    return Place(kernels.pop() + world, match["type"] + ("-uefi" if uefi else ""), xens.pop())


def _kernels(cases: Iterable[CaseResult]) -> set[str]:
    """The releases of the kernels that the cases ran."""
    named = (_KERNEL.search(case.inputs.get("kernel", "")) for case in cases if _CELL.fullmatch(case.cell))
    return {found[1] for found in named if found}


def _commit(harness: str) -> str:
    """Of the run's input ``harness``; of a merged run that of each part."""
    return " ".join(dict.fromkeys(revision.short(part) for part in harness.split(" | ")))


# known issue, FreeBSD bug 197344: netfront ignores csum_blank
def _issue(reason: str) -> str:
    """The bug of the known issue with which a case's reason begins."""
    return reason.partition("\n")[0].removeprefix(KNOWN_WORDS).partition(": ")[0]


# -- the data file ----------------------------------------------------------------------------------------------------


def merge(old: Iterable[Record], new: Iterable[Record]) -> tuple[Record, ...]:
    """Of several records of a suite in a cell the one whose run started last, in a fixed order."""
    best: dict[tuple[Place, str], Record] = {}
    for record in (*old, *new):
        key = (record.place, record.suite)
        if key not in best or record.started >= best[key].started:
            best[key] = record
    return tuple(sorted(best.values(), key=lambda record: (record.place.order, record.suite)))


def dump(data: Iterable[Record]) -> str:
    """JSON with a line for each record, so that a diff shows which ones a run changed."""
    lines = ",\n".join(json.dumps(asdict(record), sort_keys=True) for record in data)
    return f'{{"schema": {SCHEMA}, "records": [\n{lines}\n]}}\n'


def parse(text: str) -> tuple[Record, ...]:
    """Raises UsageError for what :func:`dump` did not write."""
    try:
        data = json.loads(text)
        if data["schema"] != SCHEMA:
            raise UsageError(
                f"docs/matrix.json has schema {data['schema']}, this is {SCHEMA}", hint="take the harness that wrote it"
            )
        return merge((), map(_parsed, data["records"]))
    except (ValueError, KeyError, TypeError) as exc:
        raise UsageError(
            f"docs/matrix.json: {exc}", hint="restore it (git checkout docs/matrix.json), then record the runs again"
        ) from exc


def _parsed(data: dict[str, Any]) -> Record:
    lists = {name: tuple(data[name]) for name in ("failed", "unjudged")}
    unknown = data.keys() - {item.name for item in fields(Record)}
    if unknown:
        raise ValueError(f"unknown keys {', '.join(sorted(unknown))}")
    return Record(**data | lists)


# -- the table --------------------------------------------------------------------------------------------------------


def render(data: Iterable[Record], suites: Collection[str]) -> str:
    """The table in Markdown, and the cases that did not pass by name. ``suites`` are all there are: a cell names what it lacks."""
    cells: dict[Place, list[Record]] = {}
    for record in data:
        cells.setdefault(record.place, []).append(record)
    rows = {(freebsd, kind) for freebsd in FREEBSD for kind in TYPES} | {(place.freebsd, place.type) for place in cells}
    xens = sorted({*XEN, *(place.xen for place in cells)}, key=versions.numbers)
    lines = ["| FreeBSD | guest type | " + " | ".join(f"Xen {xen}" for xen in xens) + " |", "|---" * (2 + len(xens)) + "|"]
    for freebsd, kind in sorted(rows, key=lambda row: Place(row[0], row[1], "").order):
        told = [_cell(cells.get(Place(freebsd, kind, xen), []), suites) for xen in xens]
        lines.append(f"| {freebsd} | {_TITLES.get(kind, kind)} | {' | '.join(told)} |")
    for title, rows_of in (("Failed", _failed), ("Not judged", _unjudged), ("Known issues", _known)):
        lines += _named(title, rows_of, cells)
    return "\n".join(lines) + "\n"


def _cell(here: list[Record], suites: Collection[str]) -> str:
    if not here:
        return NOT_RUN
    commits = dict.fromkeys(word for record in sorted(here, key=lambda record: record.started) for word in record.commit.split())
    bad = sum(len(record.failed) for record in here)
    counts = [
        f"**{bad} failed**" if bad else "",
        f"{sum(record.passed for record in here)} passed",
        f"{sum(len(record.known) for record in here)} known",
        f"{sum(record.skipped for record in here)} skipped",
        *(f"{count} {words}" for count, words in (
            (sum(len(record.unjudged) for record in here), "not judged"), (sum(record.absent for record in here), NOT_RUN),
        ) if count),
    ]  # fmt: skip
    lacking = set(suites) - {record.suite for record in here}
    only = f" ({', '.join(sorted(record.suite for record in here))} only)" if lacking else ""
    head = f"{max(record.started for record in here)[:10]} {' '.join(f'`{commit}`' for commit in commits)}"
    return f"{head}: {', '.join(filter(None, counts))}{only}"


def _failed(record: Record) -> dict[str, str]:
    return dict.fromkeys(record.failed, "")


def _unjudged(record: Record) -> dict[str, str]:
    return dict.fromkeys(record.unjudged, "")


def _known(record: Record) -> Mapping[str, str]:
    return record.known


def _named(title: str, rows_of: Callable[[Record], Mapping[str, str]], cells: Mapping[Place, list[Record]]) -> list[str]:
    """A line for each case: its bug, and the cells in which it was seen."""
    places: dict[tuple[str, str], list[Place]] = {}
    ran: dict[str, set[Place]] = {}
    for place, here in sorted(cells.items(), key=lambda item: item[0].order):
        for record in here:
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


def put(document: str, table: str) -> str:
    """``document`` with ``table`` between its markers. Raises UsageError where it has not both, once each."""
    if document.count(BEGIN) != 1 or document.count(END) != 1 or document.index(BEGIN) > document.index(END):
        raise UsageError("docs/suites.md has no place for the matrix", hint=f"put these lines where it shall be:\n{BEGIN}\n{END}")
    return f"{document.partition(BEGIN)[0]}{BEGIN}\n\n{table}\n{END}{document.partition(END)[2]}"
