# SPDX-License-Identifier: BSD-2-Clause
"""A case in pytest: run its phases, judge each of them when it ends, and write ``case.json`` after the last one."""

from __future__ import annotations

import functools
import logging
import shutil
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import pytest
from _pytest._code.code import ExceptionChainRepr
from _pytest.runner import runtestprotocol

from harness import stamp, trace
from harness.console.deaths import speaker
from harness.errors import HarnessError
from harness.plugin import backtraces, case_complaints, evidence, known, lost_data, pause
from harness.plugin.case_context import CaseContext, stage_times
from harness.plugin.cells import Cell, cell_of
from harness.plugin.outcome import Finding, classify, shortened
from harness.plugin.selection import title
from harness.plugin.state import CASE, PROGRESS, SETUP, WORKER_ENV, CaseProgress, case_directory
from harness.results import model
from harness.results.model import (
    FAILED,
    INFRASTRUCTURE,
    KNOWN,
    PASSED,
    SKIPPED,
    Boot,
    CaseResult,
    ComplaintRecord,
    DeathRecord,
    KnownIssueMatch,
    Stamp,
)  # fmt: skip
from harness.results.where import NOWHERE, own_parameters
from harness.safetext import plain

log = logging.getLogger("fxh.run")

# Kinds of death of a guest that says nothing about it.
_SILENT = ("hang", "eof")
# Errors in a chain of causes that are looked at.
_CAUSES = 20


def run(item: pytest.Item, nextitem: pytest.Item | None) -> None:
    """Run a case, and repeat it once if its host was lost, because a lost run gives no verdict on the guest."""
    item.ihook.pytest_runtest_logstart(nodeid=item.nodeid, location=item.location)
    setup = item.config.stash[SETUP]
    setup.case = item.nodeid
    _reset(item)
    reports = _traced(item, nextitem)
    why = _host_lost(item)
    if why:
        log.warning("%s: lost its host and runs again: %s", item.nodeid, why)
        _reset(item, why)
        item._initrequest()  # type: ignore[attr-defined]
        reports = _traced(item, nextitem)
    setup.case = ""
    for report in reports:
        item.ihook.pytest_runtest_logreport(report=report)
    item.ihook.pytest_runtest_logfinish(nodeid=item.nodeid, location=item.location)


def _traced(item: pytest.Item, nextitem: pytest.Item | None) -> list[pytest.TestReport]:
    """Run setup, call and teardown, and record their actions in the case's directory."""
    directory = case_directory(item.config, item.nodeid)
    with trace.record(directory / trace.FILE), trace.step(trace.CASE, item.nodeid):
        return runtestprotocol(item, nextitem=nextitem, log=False)


def _reset(item: pytest.Item, lost: str = "") -> None:
    item.config.stash[SETUP].take()
    item.stash[PROGRESS] = CaseProgress(time.monotonic(), stamp.now(), lost=lost)
    if CASE in item.stash:
        del item.stash[CASE]
    if lost:
        _set_apart(case_directory(item.config, item.nodeid))


def _set_apart(directory: Path) -> None:
    """Move the files of a lost attempt, so that nothing takes them for evidence of the next one. Its result stays until then."""
    target = directory / model.LOST
    shutil.rmtree(target, ignore_errors=True)
    found = [path for path in directory.iterdir() if path.name != "case.json"]
    target.mkdir()
    for path in found:
        path.rename(target / path.name)


def _host_lost(item: pytest.Item) -> str:
    """Why the case lost its host, or ""."""
    cell = cell_of(item)
    if cell is None or not any(finding.outcome == INFRASTRUCTURE for _, finding in item.stash[PROGRESS].findings):
        return ""
    return item.config.stash[WORKER_ENV].drop_lost_host(cell)


# -- a phase ----------------------------------------------------------------------------------------------------------


def end_phase(item: pytest.Item, call: pytest.CallInfo[None], report: pytest.TestReport) -> None:
    """Judge setup, call or teardown, which has just ended, and change pytest's report accordingly."""
    progress = item.stash[PROGRESS]
    context = item.stash.get(CASE, None)
    _subtract_setup(item, progress, report)
    if call.excinfo is not None:
        _end_with_error(item, call.excinfo.value, call, report)
    elif call.when == "call" and (issue := next((one for one in _known_issues_of(item) if not one.sometimes), None)):
        _fail_fixed_issue(progress, issue, report)
    if call.when == "teardown":
        _write_result(item, progress, context)
    # The steps of judging (checks of the host) belong to no phase.
    item.config.stash[SETUP].take()


def escape_error(error: BaseException | None) -> None:
    """Escape and shorten the texts of an error and of its causes, which come from guests, before pytest and allure read them.

    A surrogate (half a character) in a text would end the run, because no file can have it.
    """
    for _ in range(_CAUSES):
        if error is None:
            return
        error.args = tuple(_shown(word) if isinstance(word, str) else word for word in error.args)
        for name in ("message", "hint", "msg"):
            if isinstance(text := getattr(error, name, None), str):
                setattr(error, name, _shown(text))
        error = error.__cause__ or error.__context__


def escape(report: pytest.TestReport) -> None:
    """Escape and shorten what pytest prints of a case: the lines of its source, and captured output."""
    report.sections = [(name, _shown(text)) for name, text in report.sections]
    found = report.longrepr
    if isinstance(found, str):
        report.longrepr = _shown(found)
    elif isinstance(found, tuple):  # of a skip: file, line, reason
        report.longrepr = (found[0], found[1], _shown(found[2]))
    elif isinstance(found, ExceptionChainRepr):
        for traceback, crash, _ in found.chain:
            for entry in traceback.reprentries:
                entry.lines = _shown("\n".join(entry.lines)).split("\n") if entry.lines else []
            if crash is not None:
                crash.message = _shown(crash.message)


def _shown(text: str) -> str:
    return shortened(plain(f"{text}\n")[:-1])


def _subtract_setup(item: pytest.Item, progress: CaseProgress, report: pytest.TestReport) -> None:
    """Take the run's setup, and a pause, out of the phase's duration, which JUnit's file and the line of the case also show."""
    setup, steps = item.config.stash[SETUP].take()
    report.duration, progress.pause = max(0.0, report.duration - progress.pause), 0.0
    if setup:
        report.duration = max(0.0, report.duration - setup)
        report.user_properties.append(("setup", f"{setup:.1f} s: {steps}"))
    progress.seconds += report.duration
    progress.setup += setup


def _end_with_error(item: pytest.Item, error: BaseException, call: pytest.CallInfo[None], report: pytest.TestReport) -> None:
    context = item.stash.get(CASE, None)
    finding = classify(error)
    if context is not None and finding.outcome not in (SKIPPED, PASSED):
        with trace.step(trace.EVIDENCE, "check the host"):
            finding = _check_host(item, context, finding)
        evidence.gather(context, silent=finding.death is not None and finding.death.kind in _SILENT)
    issue = _matching_issue(item, finding)
    new = context is not None and finding.outcome == FAILED and call.when != "teardown" and issue is None
    if context is not None and new:
        finding = _with_counters(item, context, finding, report)
    if context is not None and finding.outcome not in (SKIPPED, PASSED):
        pause.on_failure(item, finding.reason)
    if context is not None and new and context.cell is not None:
        item.config.stash[WORKER_ENV].keep(context.cell, context)
    if isinstance(error, HarnessError):
        report.longrepr = _explanation(call, finding)
    if issue is not None:
        match = KnownIssueMatch(issue.bug, issue.why)
        finding = Finding(KNOWN, f"known issue: {issue.line}\n{finding.reason}", finding.death, match)
        # pytest's form of an expected failure.
        report.outcome, report.wasxfail = "skipped", f"known issue: {issue.line}"
    _record(item.stash[PROGRESS], report, call.when, finding)
    if context is not None and context.kept:
        (context.directory / "kept.txt").write_text(context.kept + "\n")
        report.longrepr = f"{report.longrepr}\n--- kept ---\n{context.kept}"


def _with_counters(item: pytest.Item, context: CaseContext, finding: Finding, report: pytest.TestReport) -> Finding:
    """The finding with the reason for which data did not arrive. pytest shows that in a separate section."""
    with trace.step(trace.EVIDENCE, "explain lost data"):
        rows = lost_data.rows(context, finding.reason, item.stash[PROGRESS].begun)
    if not rows:
        return finding
    text = "\n".join(rows)
    report.sections.append(("cause", text))
    return replace(finding, reason=f"{finding.reason}\n{text}")


def _check_host(item: pytest.Item, context: CaseContext, finding: Finding) -> Finding:
    """An infrastructure finding instead of ``finding`` if the guest fell silent and its host is broken: the guest is not to blame."""
    silent = finding.death is None or finding.death.kind in _SILENT
    if context.cell is None or not silent:
        return finding
    error = item.config.stash[WORKER_ENV].check_host(context.cell)
    return Finding(INFRASTRUCTURE, f"{error.message}\n(first finding: {finding.reason})") if error else finding


def _explanation(call: pytest.CallInfo[None], finding: Finding) -> str:
    """The text for pytest's report of a harness error, without a traceback through the harness."""
    traceback = call.excinfo.traceback if call.excinfo is not None else ()
    frames = [entry for entry in traceback if "/suites/" in str(entry.path) or "/tests/" in str(entry.path)]
    where = f"{frames[-1].path}:{frames[-1].lineno + 1}: " if frames else ""
    text = f"{where}[{finding.outcome}] {finding.reason}"
    if finding.death is not None and finding.death.excerpt:
        text += f"\n--- {speaker(finding.death.kind)} ---\n{plain(finding.death.excerpt)}"
    return text


def _record(progress: CaseProgress, report: pytest.TestReport, when: str, finding: Finding) -> None:
    progress.findings.append((when, finding))
    report.user_properties.append(("outcome", finding.outcome.value))


# -- known issues -----------------------------------------------------------------------------------------------------


def _fail_fixed_issue(progress: CaseProgress, issue: known.KnownIssue, report: pytest.TestReport) -> None:
    text = f"the case passes, but is listed as a known issue: {issue.line}\nRemove its entry from suites/{known.FILE}."
    _record(progress, report, "call", Finding(FAILED, text, known_issue=KnownIssueMatch(issue.bug, issue.why, gone=True)))
    report.outcome, report.longrepr = "failed", text


def _matching_issue(item: pytest.Item, finding: Finding) -> known.KnownIssue | None:
    """The known issue that explains ``finding``."""
    if finding.outcome != FAILED:
        return None
    identity = finding.death.identity if finding.death else ""
    return next((issue for issue in _known_issues_of(item) if issue.excuses(finding.reason, identity)), None)


def _known_issues_of(item: pytest.Item) -> tuple[known.KnownIssue, ...]:
    """The known issues that cover the case in its cell."""
    cell = cell_of(item)
    return known.covering(_known_issues(item.path.parent.parent), _case_id(item, cell), cell) if cell is not None else ()


def _case_id(item: pytest.Item, cell: Cell) -> str:
    return known.case_id(item.path.parent.name, item.name.partition("[")[0], item.callspec.id, cell)  # type: ignore[attr-defined]


def _complaints(item: pytest.Item, directory: Path, logs: Mapping[str, str]) -> tuple[ComplaintRecord, ...] | None:
    """The complaints of the case, each with the known issue that covers it."""
    found, cell = case_complaints.find(directory, logs), cell_of(item)
    if not found or cell is None:
        return found
    issues, case = _known_issues(item.path.parent.parent), _case_id(item, cell)
    covers = ((one, known.find_complaint(issues, case, cell, one.identity, one.message)) for one in found)
    return tuple(replace(one, known_issue=KnownIssueMatch(issue.bug, issue.why) if issue else None) for one, issue in covers)


@functools.cache
def _known_issues(suites: Path) -> tuple[known.KnownIssue, ...]:
    return known.load(suites)


# -- the result -------------------------------------------------------------------------------------------------------


def _write_result(item: pytest.Item, progress: CaseProgress, context: CaseContext | None) -> None:
    config = item.config
    directory = context.directory if context is not None else case_directory(config, item.nodeid)
    # Of several findings the first one counts: an error of teardown does not hide that of the call.
    phase, finding = progress.findings[0] if progress.findings else ("", Finding(PASSED, ""))
    death, cell = finding.death, cell_of(item)
    inputs = dict(context.inputs) if context is not None else {}
    if progress.lost:
        inputs["run again because"] = progress.lost
    if death is not None and context is not None:
        backtraces.guest(death, context.guests, directory)
    result = CaseResult(
        nodeid=item.nodeid,
        suite=item.path.parent.name,
        case=item.name.partition("[")[0],
        cell=str(cell or ""),
        outcome=finding.outcome,
        seconds=round(progress.seconds, 3),
        reason=finding.reason,
        identity=death.identity if death else "",
        excerpt=death.excerpt if death else "",
        boots=_boots(context) if context is not None else (),
        inputs=inputs,
        files=result_files(directory),
        started=progress.started,
        directory=directory.name,
        title=title(item),
        metrics=context.metrics if context is not None else {},
        phase=phase,
        formerly=tuple(name for mark in item.iter_markers("formerly") for name in mark.args),
        setup=round(progress.setup, 3),
        where=cell.where if cell is not None else NOWHERE,
        known_issue=finding.known_issue,
        complaints=_complaints(item, directory, context.logs if context is not None else {})
        if finding.outcome not in (SKIPPED, INFRASTRUCTURE)
        else None,
        death=DeathRecord(death.kind, death.identity, death.message) if death else None,
        parameters=own_parameters(item.nodeid, str(cell or "")),
        paused=progress.paused,
    )
    model.write_case(directory, result)
    _attach_to_allure(config, directory, result)


def _attach_to_allure(config: pytest.Config, directory: Path, result: CaseResult) -> None:
    """Attach the files of the case, if allure's results are written."""
    if not config.getoption("allure_report_dir", default=None):
        return
    import allure

    for name in result.files:
        if not name.endswith((".idx", model.DUMP_SUFFIX)):
            allure.attach.file(directory / name, name=name, attachment_type=allure.attachment_type.TEXT)  # type: ignore[no-untyped-call]


def _boots(context: CaseContext) -> tuple[Boot, ...]:
    found = [context.warm_boot] if context.warm_boot else []
    for guest in context.guests:
        if guest.unpaused:
            death = guest.console.death
            died = round(death.at - guest.unpaused, 3) if death is not None and death.at is not None else None
            console = guest.console
            reached = tuple(Stamp(*stamp) for stamp in stage_times(guest))
            message = death.message if death is not None else ""
            found.append(Boot(guest.name, reached, died, guest.unpaused, console.log_path.name, console.boot_offset, message))
    return tuple(found)


def result_files(directory: Path) -> tuple[str, ...]:
    """The names of the case's files that its result lists: ``NAME``, and ``lost/NAME`` of an attempt that lost its host."""
    files = [*directory.iterdir(), *directory.glob(f"{model.LOST}/*")]
    return tuple(sorted(str(file.relative_to(directory)) for file in files if file.name not in ("case.json", model.LOST)))
