# SPDX-License-Identifier: BSD-2-Clause
"""The report of a run as a plain-text mail of 72 columns, for a mailing list or a bug report."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from email.message import EmailMessage
from email.policy import SMTP
from email.utils import format_datetime, make_msgid
from itertools import groupby, takewhile

from harness.config import addresses
from harness.console.deaths import speaker
from harness.report import actions
from harness.report.boot_consoles import ConsoleChange
from harness.report.evidence import around_death, finding_rows, without_cause
from harness.report.model import CaseReport, ComplaintReport, Report
from harness.results.model import CaseResult
from harness.results.where import Where
from harness.safetext import plain
from harness.stamp import ISO
from harness.verdicts import values

COLUMNS = 72
# Lines of console and backtrace, of the reason for a new failure, and of its cause. The number of failures that the mail has in
# full.
_CONSOLE, _REASON, _CAUSE, _IN_FULL = 24, 12, 10, 6
# Length to which the subject is cut, in characters.
_SUBJECT = 120
# Setup steps from this many seconds on are listed.
_LONG = 10.0
# Length to which the reason of a case without a judgement is cut, in characters.
_WHY = 300
# New complaints that a mail shows, and known ones.
_COMPLAINTS = 10
# Cells whose console changes a mail shows, and lines of each kind.
_CELLS, _LINES = 3, 12
_GUEST_TYPES = {"pv": "PV", "pvh": "PVH", "hvm": "HVM", "pvshim": "PV shim"}
# Inputs of the test machine, which do not matter for a bug report.
_UNIMPORTANT = ("python", "machine", "backend", "lab")


def compose(report: Report, *, to: str = "", sender: str = "") -> EmailMessage:
    """The mail of a run. ``to`` may be several addresses, separated by commas. Raises UsageError for an invalid address."""
    message = _message(report, f"[fxh] {_cells(report)}: {report.sentence}", body(report), to, sender)
    message["Auto-Submitted"] = "auto-generated"
    return message


def compose_case(
    report: Report, item: CaseReport, *, to: str = "", sender: str = "", scrub: Callable[[str], str] = str
) -> EmailMessage:
    """The draft of a mail that reports one failure or known issue, for a person to send.

    ``scrub`` removes from the text what must not leave this machine. Raises UsageError for an invalid address.
    """
    case = item.result
    observed = next((text for label, text in finding_rows(without_cause(case.reason)[0]) if label == "observed"), "")
    what = observed or (case.death.message if case.death else "") or case.title
    return _message(report, scrub(f"{_versions(case)}: {what}"), scrub(case_body(report, item)), to, sender)


def _message(report: Report, subject: str, text: str, to: str, sender: str) -> EmailMessage:
    message = EmailMessage(policy=SMTP.clone(max_line_length=78))
    message["Subject"] = _one_line(subject)[:_SUBJECT]
    message["From"] = addresses.mailboxes([sender or "fxh@localhost"], "--from")
    if to:
        message["To"] = addresses.mailboxes([to], "--to")
    message["Date"] = format_datetime(_when(report.run.ended or report.run.started))
    message["Message-ID"] = make_msgid(domain="fxh.invalid")
    message["X-Fxh-Run"] = _one_line(report.run.run)
    # No quoted-printable: readers of the raw mail can copy a backtrace.
    message.set_content(text, subtype="plain", charset="utf-8", cte="7bit" if text.isascii() else "8bit")
    return message


def body(report: Report) -> str:
    """The text. Only a long word, such as a path, exceeds 72 columns."""
    run = report.run
    parts = [_wrap(report.sentence)]
    if report.note:
        parts.append(_wrap(report.note))
    if report.changed:
        changes = [(name, f"{before} -> {now}") for name, before, now in report.changed]
        parts.append("Inputs that changed since the previous results:\n" + _table(changes))
    news = report.news
    for number, item in enumerate(news[:_IN_FULL], 1):
        parts.append(_failure(item, number, len(news)))
    if len(news) > _IN_FULL:
        rest = "\n".join(_listed(item) for item in news[_IN_FULL:])
        parts.append(_head(f"{len(news) - _IN_FULL} more") + rest)
    quiet = [
        item
        for item in report.cases
        if not item.verdict.is_news and item.verdict.kind not in (values.PASS, values.SKIP, values.NEW)
    ]
    for kind, items in groupby(quiet, key=lambda item: item.verdict.kind):
        parts.append(_head(kind) + "\n".join(_listed(item) for item in items))
    if report.complaints:
        parts.append(_head("new complaints") + "\n".join(_complaint(item) for item in report.complaints[:_COMPLAINTS]))
    if report.known_complaints:
        parts.append(_head("known complaints") + "\n".join(map(_known_complaint, report.known_complaints[:_COMPLAINTS])))
    for change in report.console_changes[:_CELLS]:
        parts.append(_head(f"new console lines, {change.cell}") + _console_change(change))
    worse = [drift for item in report.cases for drift in item.drifts]
    if worse:
        parts.append(_head("drift") + "\n".join(_wrap(f"{d.case} in {d.cell}: {d.words}", "  ") for d in worse[:20]))
    setup = [item for item in report.setup if item.seconds >= _LONG or item.drift]
    if setup:
        usual = {item.what: f", usually {item.drift.usual:.0f} s" for item in setup if item.drift}
        rows = [(f"{item.seconds:.0f} s", item.what + usual.get(item.what, "")) for item in setup]
        parts.append(_head("setup (not part of any case's time)") + _table(rows))
    parts.append(_inputs(report.inputs))
    parts.append(_head("run all of it again") + _command(run.command or "fxh run"))
    ended = f"to {run.ended}" if run.ended else "(did not finish)"
    parts.append(_wrap(f"Run {run.run}, {run.started} {ended}. Baseline: {report.baseline}."))
    return "\n\n".join(parts) + "\n"


def case_body(report: Report, item: CaseReport) -> str:
    """The text of :func:`compose_case`: what happened, why if known, all inputs, and how to run it again."""
    case, issue = item.result, item.result.known_issue
    parts = [_wrap(f"Correct behaviour: {case.title}")]
    if issue:
        # The first line of the reason names the issue, too.
        item = replace(item, result=replace(case, reason=case.reason.partition("\n")[2]))
        parts += [_wrap(f"{label}: {text}") for label, text in (("Cause", issue.why), ("Bug", issue.bug)) if text]
    parts.append(_evidence(item))
    parts.append(_wrap(f"freebsd-xen-harness ran {case.key} in {case.cell}, in run {report.run.run} of {report.run.started}."))
    return "\n\n".join([*parts, _inputs((report.run.inputs | case.inputs).items())]) + "\n"


def _inputs(inputs: Iterable[tuple[str, str]]) -> str:
    return _head("inputs") + _table([(name, _short(value)) for name, value in inputs if name not in _UNIMPORTANT])


def _failure(item: CaseReport, number: int, total: int) -> str:
    case = item.result
    facts = [
        ("case", case.key),
        ("cell", case.cell),
        ("guest type", _guest_type(case.where)),
        ("verdict", item.verdict.reason),
        ("death", case.identity),
    ]
    head = [_head(f"{number} of {total}: {item.verdict.kind}").rstrip("\n"), _wrap(case.title), ""]
    return "\n".join([*head, _table([(name, value) for name, value in facts if value]), "", _evidence(item)])


def _evidence(item: CaseReport) -> str:
    """The finding, the console, the last actions, the configuration, and the command that runs the case again."""
    case, lines = item.result, []
    if case.reason:
        lines += [_reason(case.reason)]
    config = [(name, _short(case.inputs[name])) for name in ("kernel", "xen", "dom0") if name in case.inputs]
    if config:
        lines += ["", _table(config)]
    for boot in case.boots[-1:]:
        reached = ", ".join(f"{stamp.name} {stamp.at:.1f} s" for stamp in boot.stages)
        died = f"; died after {boot.died:.1f} s" if boot.died is not None else ""
        lines += ["", _wrap(f"Stages reached: {reached or 'none'}{died}.")]
    if case.excerpt:
        source = speaker(case.death.kind if case.death else "")
        lines += ["", f"{source.capitalize()}:", _quote(around_death(case, _CONSOLE).splitlines())]
    if item.backtrace:
        lines += ["", "Backtrace:", _quote(item.backtrace.splitlines()[:_CONSOLE])]
    if done := actions.last(item.events):
        lines += ["", "Last actions before the failure:", _quote(done)]
    if item.config:
        lines += ["", "Domain configuration:", _quote(item.config.splitlines())]
    lines += ["", "Run it again:", _command(item.rerun)]
    return "\n".join(lines).lstrip("\n")


def _versions(case: CaseResult) -> str:
    """The guest and Xen: ``FreeBSD 15.1-RELEASE-p1 XENA, PVH, Xen 4.20.5-pre``."""
    # kernel (FreeBSD 15.1-RELEASE-p1 XENA, 1501000) sha256:0123...
    version = re.search(r"\((.+?)(?:, \d+)?\)", case.inputs.get("kernel", ""))
    xen = f"Xen {case.inputs['xen']}" if "xen" in case.inputs else ""
    return ", ".join(filter(None, (version[1] if version else case.where.guest, _guest_type(case.where), xen)))


def _guest_type(where: Where) -> str:
    name = _GUEST_TYPES.get(where.type, where.type)
    return f"{name} ({where.firmware.upper()})" if where.firmware else name


def _reason(text: str) -> str:
    """A finding as a table of test, observed, expected, reference and cause; other lines quoted."""
    finding, cause = without_cause(text)
    rows = finding_rows(finding)
    if any(label for label, _ in rows):
        # pytest repeats the observations as an expression.
        rows = tuple(takewhile(lambda row: row[0] or not row[1].startswith("assert "), rows))
    rows = (*rows[:_REASON], *finding_rows(cause)[:_CAUSE])
    return "\n".join(
        _table(list(part)) if labelled else _quote([line for _, line in part])
        for labelled, part in groupby(rows, key=lambda row: bool(row[0]))
    )


def _complaint(item: ComplaintReport) -> str:
    """A message that is new in this cell, the cases that saw it, and the lines that belong to it."""
    return "\n".join([_wrap(f"{_where(item)}:", "  "), _quote([item.complaint.message, *item.complaint.detail])])


def _known_complaint(item: ComplaintReport) -> str:
    issue = item.complaint.known_issue
    return _wrap(f"{_where(item)}: {issue.line if issue else ''}", "  ")


def _where(item: ComplaintReport) -> str:
    cases = f"{len(item.cases)} cases" if len(item.cases) > 1 else item.cases[0].key
    return f"{item.complaint.kind} in {cases}, {item.cell} ({item.complaint.source})"


def _console_change(change: ConsoleChange) -> str:
    """Lines of the boot, with + if they are new since the run ``change.before`` and - if they are gone."""
    difference = change.difference
    rows = [*(f"+ {line}" for line in difference.appeared[:_LINES]), *(f"- {line}" for line in difference.disappeared[:_LINES])]
    left = difference.left_out(_LINES)
    more = f"\n  and {left} more; fxh compare --console {change.before}" if left else ""
    return _wrap(f"Compared with run {change.before}:") + "\n" + _quote(rows) + more


def _listed(item: CaseReport) -> str:
    """A case in one paragraph."""
    case = item.result
    since = f", since {item.verdict.since}" if item.verdict.since and item.verdict.kind != values.FIXED else ""
    reference = f", {item.verdict.reference}" if item.verdict.reference else ""
    # The mail has no other place for this reason.
    why = f": {case.reason[:_WHY]}" if item.verdict.kind == values.INFRASTRUCTURE and case.reason else ""
    return _wrap(f"{case.key} in {case.cell}{since}{reference}{why}", "  ")


def _cells(report: Report) -> str:
    cells = sorted({item.result.cell for item in report.cases if item.result.outcome != values.SKIPPED})
    return ", ".join(cells[:2]) + (f" and {len(cells) - 2} more" if len(cells) > 2 else "") if cells else "no cell"


def _wrap(text: str, indent: str = "") -> str:
    lines = textwrap.wrap(_one_line(text), COLUMNS, initial_indent=indent, subsequent_indent=indent + ("  " if indent else ""))
    return "\n".join(lines)


def _head(text: str) -> str:
    return f"--- {text} ".ljust(COLUMNS, "-") + "\n"


def _table(rows: Sequence[tuple[str, str]]) -> str:
    width = min(18, max((len(name) for name, _ in rows), default=0))
    lines = []
    for name, value in rows:
        head = f"  {_one_line(name):<{width}}  "
        if len(head) > 24:
            lines.append(head.rstrip())
            head = " " * (width + 4)
        lines += textwrap.wrap(_one_line(value), COLUMNS, initial_indent=head, subsequent_indent=" " * len(head)) or [head.rstrip()]
    return "\n".join(lines)


def _quote(lines: list[str]) -> str:
    """Console lines behind a margin. A backslash marks a line that continues on the next one, as in a shell."""
    width, found = COLUMNS - 3, []
    for line in lines:
        text = plain(line).expandtabs(8)
        pieces = [text[at : at + width] for at in range(0, len(text), width)] or [""]
        found += [f"| {piece}\\" for piece in pieces[:-1]] + [f"| {pieces[-1]}".rstrip()]
    return "\n".join(found)


def _command(text: str) -> str:
    """A command, broken between words, that can be pasted into a shell."""
    lines = textwrap.wrap(
        _one_line(text),
        COLUMNS - 2,
        initial_indent="  ",
        subsequent_indent="      ",
        break_long_words=False,
        break_on_hyphens=False,
    )
    return " \\\n".join(lines)


def _short(value: str) -> str:
    """The first 16 digits of a hash identify a file, and keep the line readable."""
    return re.sub(r"(sha256:[0-9a-f]{16})[0-9a-f]+", r"\1", value)


def _one_line(text: str) -> str:
    """Guest text without line breaks and control characters, so that it cannot add a line, a header or an escape sequence."""
    return " ".join(plain(text).split())


def _when(stamp: str) -> datetime:
    try:
        return datetime.strptime(stamp, ISO).replace(tzinfo=UTC)
    except ValueError:
        return datetime.fromtimestamp(0, UTC)
