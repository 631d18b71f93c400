# SPDX-License-Identifier: BSD-2-Clause
"""A case in pytest: run its phases, judge each of them when it ends, and write ``case.json`` after the last one."""

from __future__ import annotations

import logging
import shutil
import time
from dataclasses import replace
from pathlib import Path

import pytest
from _pytest.runner import runtestprotocol

from harness import stamp, trace
from harness.errors import HarnessError
from harness.plugin import case_issues, case_result, evidence, known, lost_data, pause, report_text
from harness.plugin.case_context import CaseContext
from harness.plugin.cells import cell_of
from harness.plugin.outcome import PhaseResult, classify
from harness.plugin.state import ATTEMPT, CASE, SETUP, WORKER_ENV, Attempt, case_directory
from harness.results import model
from harness.results.model import FAILED, INFRASTRUCTURE, KNOWN, KnownIssueMatch

log = logging.getLogger("fxh.run")


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
    item.stash[ATTEMPT] = Attempt(time.monotonic(), stamp.now(), lost=lost)
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
    if cell is None or not any(result.outcome == INFRASTRUCTURE for _, result in item.stash[ATTEMPT].results):
        return ""
    return item.config.stash[WORKER_ENV].drop_lost_host(cell)


# -- a phase ----------------------------------------------------------------------------------------------------------


def end_phase(item: pytest.Item, call: pytest.CallInfo[None], report: pytest.TestReport) -> None:
    """Judge setup, call or teardown, which has just ended, and change pytest's report accordingly."""
    attempt = item.stash[ATTEMPT]
    context = item.stash.get(CASE, None)
    _subtract_setup(item, attempt, report)
    if call.excinfo is not None:
        _judge_error(item, call.excinfo.value, call, report)
    elif call.when == "call" and (issue := next((one for one in case_issues.covering(item) if not one.sometimes), None)):
        _fail_fixed_issue(attempt, issue, report)
    if call.when == "teardown":
        case_result.write(item, attempt, context)
    # The steps of judging (checks of the host) belong to no phase.
    item.config.stash[SETUP].take()


def _subtract_setup(item: pytest.Item, attempt: Attempt, report: pytest.TestReport) -> None:
    """Take the run's setup, and a pause, out of the phase's duration, which JUnit's file and the line of the case also show."""
    setup, steps = item.config.stash[SETUP].take()
    report.duration, attempt.pause_seconds = max(0.0, report.duration - attempt.pause_seconds), 0.0
    if setup:
        report.duration = max(0.0, report.duration - setup)
        report.user_properties.append(("setup", f"{setup:.1f} s: {steps}"))
    attempt.seconds += report.duration
    attempt.setup += setup


def _judge_error(item: pytest.Item, error: BaseException, call: pytest.CallInfo[None], report: pytest.TestReport) -> None:
    """Record the result of a phase that raised ``error``, gather evidence, and leave a failed case to a person who asked for it."""
    context = item.stash.get(CASE, None)
    result = classify(error)
    if context is not None and result.bad:
        with trace.step(trace.EVIDENCE, "check the host"):
            result = _check_host(item, context, result)
        evidence.gather(context, silent=result.silent)
    issue = case_issues.matching(item, result)
    # In teardown the guests may be gone already, so there is nothing to explain or to keep.
    unexpected = result.outcome == FAILED and call.when != "teardown" and issue is None
    if context is not None and unexpected:
        result = _with_cause(item, context, result, report)
    if context is not None and result.bad:
        pause.on_failure(item, result.reason)
    if context is not None and unexpected and context.cell is not None:
        item.config.stash[WORKER_ENV].keep(context.cell, context)
    if isinstance(error, HarnessError):
        report.longrepr = report_text.explanation(call, result)
    if issue is not None:
        result = _as_known(result, issue, report)
    _record(item.stash[ATTEMPT], report, call.when, result)
    if context is not None and context.kept:
        (context.directory / "kept.txt").write_text(context.kept + "\n")
        report.longrepr = f"{report.longrepr}\n--- kept ---\n{context.kept}"


def _as_known(result: PhaseResult, issue: known.KnownIssue, report: pytest.TestReport) -> PhaseResult:
    """The result of a failure that ``issue`` excuses. pytest's report gets the form of an expected failure."""
    report.outcome, report.wasxfail = "skipped", f"known issue: {issue.line}"
    match = KnownIssueMatch(issue.bug, issue.why)
    return PhaseResult(KNOWN, f"known issue: {issue.line}\n{result.reason}", result.death, match)


def _with_cause(item: pytest.Item, context: CaseContext, result: PhaseResult, report: pytest.TestReport) -> PhaseResult:
    """The result with the reason for which data did not arrive. pytest shows that in a separate section."""
    with trace.step(trace.EVIDENCE, "explain lost data"):
        rows = lost_data.rows(context, result.reason, item.stash[ATTEMPT].begun)
    if not rows:
        return result
    text = "\n".join(rows)
    report.sections.append(("cause", text))
    return replace(result, reason=f"{result.reason}\n{text}")


def _check_host(item: pytest.Item, context: CaseContext, result: PhaseResult) -> PhaseResult:
    """An infrastructure result instead of ``result`` if the guest fell silent and its host is broken: the guest is not to blame."""
    if context.cell is None or (result.death is not None and not result.silent):
        return result
    error = item.config.stash[WORKER_ENV].check_host(context.cell)
    return PhaseResult(INFRASTRUCTURE, f"{error.message}\n(first finding: {result.reason})") if error else result


def _record(attempt: Attempt, report: pytest.TestReport, when: str, result: PhaseResult) -> None:
    attempt.results.append((when, result))
    report.user_properties.append(("outcome", result.outcome.value))


def _fail_fixed_issue(attempt: Attempt, issue: known.KnownIssue, report: pytest.TestReport) -> None:
    text = f"the case passes, but is listed as a known issue: {issue.line}\nRemove its entry from suites/{known.FILE}."
    _record(attempt, report, "call", PhaseResult(FAILED, text, known_issue=KnownIssueMatch(issue.bug, issue.why, gone=True)))
    report.outcome, report.longrepr = "failed", text
