# SPDX-License-Identifier: BSD-2-Clause
"""Known issues (suites/known_issues.toml): reported failures and complaints with a known cause, expected until they are fixed.

An ``[[issue]]`` covers a failure. The check is strict: a covered case that passes counts as failed until its entry is removed. An
entry excuses a failure only if the text of the failure matches. A case may have several entries, one for each cause.

A ``[[complaint]]`` covers a complaint (harness.console.complaints), which is expected from then on. An entry that fits no case, or is
due for review, fails ``fxh check``.
"""

from __future__ import annotations

import datetime
import fnmatch
import re
import tomllib
from collections.abc import Iterable, Mapping, Set
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from harness.errors import UsageError
from harness.guests import registry
from harness.osversion import UNKNOWN
from harness.plugin.cells import Cell

FILE = "known_issues.toml"
_HINTS = {str: "set a text in quotes", bool: "set true or false", datetime.date: "set a date without quotes, such as 2027-01-31"}


@dataclass(frozen=True)
class KnownIssue:
    """One entry. ``case`` (``suite/function`` or ``suite/function[parameters]``) and ``cells`` are globs.

    ``says`` is a regex for the failure's reason or the death's identity, or for a complaint's identity or message. ``spans`` has the version spans by OS, each of
    them a key in the file as in ``needs``: ``freebsd = ">=10.0,<14.1"``, or ``"<1400507"`` for ``__FreeBSD_version`` (see
    harness.osversion for a kernel of unknown version).
    """

    case: str
    cells: str
    says: str
    bug: str
    why: str
    since: datetime.date
    review: datetime.date
    spans: Mapping[str, str] = field(default_factory=dict)
    sometimes: bool = False
    """The failure depends on a race or on random inputs, so the case may also pass.

    Set it only then: without it the fix of the bug makes the case fail, so that the entry gets removed.
    """
    complaint: bool = False
    """The entry covers a complaint, not a failure."""

    def covers(self, case: str, cell: Cell) -> bool:
        """Whether the case is expected to fail in that cell."""
        # The brackets are those of pytest's node ids, not a character class.
        glob = self.case.replace("[", "[[]")
        named = fnmatch.fnmatchcase(case, glob) or fnmatch.fnmatchcase(case.partition("[")[0], glob)
        if not named or not fnmatch.fnmatchcase(str(cell), self.cells):
            return False
        return not self.spans or (cell.os_name in self.spans and cell.version.within(self.spans[cell.os_name]))

    def excuses(self, *texts: str) -> bool:
        """Whether the texts of a failure match this issue."""
        return any(re.search(self.says, text) for text in texts)

    @property
    def line(self) -> str:
        return f"{self.bug}: {self.why}"


def parse(text: str) -> tuple[KnownIssue, ...]:
    """The entries of the file. Raises UsageError that names an invalid entry."""
    try:
        tables = tomllib.loads(text)
    except tomllib.TOMLDecodeError as exc:
        raise UsageError(f"{FILE}: {exc}", hint="write a date as 2027-01-31, and a text in quotes") from exc
    if unknown := tables.keys() - {"issue", "complaint"}:
        raise UsageError(f"{FILE}: unknown table {', '.join(sorted(unknown))}", hint="use [[issue]] or [[complaint]]")
    issues = [_entry(f"issue {n}", entry, optional={"sometimes"}) for n, entry in enumerate(tables.get("issue", []), 1)]
    complaints = [_entry(f"complaint {n}", {"case": "*"} | entry) for n, entry in enumerate(tables.get("complaint", []), 1)]
    return (*issues, *(replace(entry, complaint=True) for entry in complaints))


def _entry(name: str, entry: dict[str, Any], optional: Set[str] = frozenset()) -> KnownIssue:
    where = f"{FILE}, {name} ({entry.get('case', 'no case')})"
    required = {each.name for each in fields(KnownIssue)} - {"spans", "complaint", "sometimes"}
    os_names = set(registry.os_names())
    missing, unknown = required - entry.keys(), entry.keys() - required - optional - os_names
    if missing or unknown:
        raise UsageError(
            f"{where}: "
            + "; ".join(f"{what}: {', '.join(sorted(keys))}" for what, keys in (("missing", missing), ("unknown", unknown)) if keys)
        )
    for name, value in entry.items():
        wanted: type = datetime.date if name in ("since", "review") else bool if name == "sometimes" else str
        if not isinstance(value, wanted) or value == "":
            raise UsageError(f"{where}: {name} = {value!r}", hint=_HINTS[wanted])
    try:
        re.compile(entry["says"])
    except re.error as exc:
        raise UsageError(f"{where}: says: {exc}") from exc
    spans = {name: entry.pop(name) for name in os_names & entry.keys()}
    for span in spans.values():
        try:
            UNKNOWN.within(span)
        except UsageError as exc:
            raise UsageError(f"{where}: {exc.message}", hint=exc.hint) from None
    return KnownIssue(**entry, spans=spans)


def load(suites: Path) -> tuple[KnownIssue, ...]:
    """The entries of the suites' file, or () without such a file."""
    try:
        return parse((suites / FILE).read_text())
    except FileNotFoundError:
        return ()


def covering(issues: Iterable[KnownIssue], case: str, cell: Cell) -> tuple[KnownIssue, ...]:
    """The entries that cover a failure of the case, one for each cause."""
    return tuple(issue for issue in issues if not issue.complaint and issue.covers(case, cell))


def find_complaint(issues: Iterable[KnownIssue], case: str, cell: Cell, *texts: str) -> KnownIssue | None:
    """The entry that covers a complaint, whose identity and message are ``texts``, in the case."""
    return next((issue for issue in issues if issue.complaint and issue.covers(case, cell) and issue.excuses(*texts)), None)


def stale(issues: Iterable[KnownIssue], cases: Iterable[tuple[str, Cell]], today: datetime.date) -> tuple[str, ...]:
    """The errors of the entries. ``cases`` are all cases in all possible cells."""
    known = list(cases)
    lines = []
    for issue in issues:
        if not any(issue.covers(case, cell) for case, cell in known):
            lines.append(f"{issue.case} in {issue.cells}: fits no case")
        if issue.review < today:
            lines.append(f"{issue.case}: its review was due on {issue.review} ({issue.bug})")
        if issue.since > today:
            lines.append(f"{issue.case}: known since {issue.since}, which is in the future")
    return tuple(lines)


def case_id(suite: str, function: str, callspec_id: str, cell: Cell) -> str:
    """``suite/function`` or ``suite/function[parameters]``, without the cell."""
    rest = callspec_id.replace(str(cell), "", 1).strip("-")
    return f"{suite}/{function}" + (f"[{rest}]" if rest else "")
