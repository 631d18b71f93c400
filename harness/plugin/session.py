# SPDX-License-Identifier: BSD-2-Clause
"""A run within pytest: its directory, its rig, and the result of each case as it ends."""

from __future__ import annotations

import functools
import logging
import os
import shlex
import shutil
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from _pytest.runner import runtestprotocol

from harness import paths, preparing, stamp, trace
from harness.console.deaths import speaker
from harness.console.text import plain
from harness.errors import HarnessError, UsageError
from harness.lab import recipe
from harness.plugin import cells, diagnosis, evidence, known
from harness.plugin import options as options_
from harness.plugin.case_context import CaseContext, stage_times
from harness.plugin.outcome import Finding, judge
from harness.plugin.selection import title
from harness.plugin.setuplog import SetupLog
from harness.plugin.state import CASE, OPTIONS, PROGRESS, RIG, RUN, SETUP, Progress, case_directory
from harness.plugin.worker_env import WorkerEnvironment
from harness.results import model, revision, run_dir
from harness.results.model import (
    FAILED,
    HARNESS,
    INFRASTRUCTURE,
    KNOWN,
    PASSED,
    SKIPPED,
    Boot,
    CaseResult,
    DeathRecord,
    KnownIssueMatch,
    RunResult,
    Stamp,
)  # fmt: skip
from harness.results.where import NOWHERE, own_parameters

log = logging.getLogger("fxh.run")


def check_options(config: pytest.Config) -> None:
    """Read the options before anything is collected. Raises pytest.UsageError."""
    config.stash[SETUP] = SetupLog()
    config.add_cleanup(preparing.listen(config.stash[SETUP]))
    try:
        config.stash[OPTIONS] = options_.read(config)
        config.stash[RIG] = WorkerEnvironment(config.stash[OPTIONS])
        source = config.stash[RIG].tested
        if source is not None:
            options_.check_firmwares(config.stash[OPTIONS], source)
    except UsageError as exc:
        raise pytest.UsageError(str(exc)) from exc


def cells_of(config: pytest.Config) -> tuple[cells.Cell, ...]:
    """The cells of this run; the first asking sets the run up."""
    if RUN not in config.stash or not (config.stash[RUN] / "cases").is_dir():
        _open(config)
    if config.getoption("fxh_everywhere"):
        return cells.everywhere(recipe.available())
    source = config.stash[RIG].tested
    return cells.cells(config.stash[OPTIONS], source.profile if source is not None else None)


def _open(config: pytest.Config) -> None:
    worker = getattr(config, "workerinput", None)
    path = Path(worker["fxh_run"]) if worker is not None else run_path(config)
    config.stash[RUN] = path
    (path / "cases").mkdir(parents=True, exist_ok=True)
    config.stash[SETUP].opened(path)
    try:
        (path / "run.json").touch(exist_ok=False)
    except FileExistsError:  # another worker was first
        return
    options = config.stash[OPTIONS]
    inputs = _inputs() | ({"shard": str(config.getoption("shard"))} if config.getoption("shard") else {})
    run = RunResult(path.name, stamp.now(), "", _command(config), inputs, options=options.chosen, branch=options.branch)
    model.write_run(path, run)
    run_dir.latest(path)
    old = sorted(p for p in path.parent.iterdir() if p.is_dir())
    for directory in old[: -config.stash[OPTIONS].keep_runs]:
        shutil.rmtree(directory, ignore_errors=True)


def run_path(config: pytest.Config) -> Path:
    """Where this run's results go; not made yet."""
    if RUN not in config.stash:
        given = str(config.getoption("fxh_run"))
        config.stash[RUN] = Path(given) if given else run_dir.new(options_.reports(config))
    return config.stash[RUN]


def _command(config: pytest.Config) -> str:
    worker = getattr(config, "workerinput", None)
    return str(worker["fxh_command"]) if worker is not None else command()


def command() -> str:
    """What was typed."""
    return shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]])


def _inputs() -> dict[str, str]:
    machine = f"{os.uname().sysname} {os.uname().release}"
    return {"harness": revision.of(paths.project()), "python": sys.version.split()[0], "machine": machine}


def finished(config: pytest.Config) -> frozenset[str]:
    """The cases that a resumed run has judged already; those of which nothing was learned run again."""
    try:
        cases = model.read_run(run_path(config)).cases
    except (OSError, ValueError):
        return frozenset()
    return frozenset(case.nodeid for case in cases if case.outcome not in (INFRASTRUCTURE, HARNESS))


# -- a case -----------------------------------------------------------------------------------------------------------


def run(item: pytest.Item, nextitem: pytest.Item | None) -> None:
    """Run a case; once more when its host was lost under it, since then nothing was learned of the guest."""
    item.ihook.pytest_runtest_logstart(nodeid=item.nodeid, location=item.location)
    setup = item.config.stash[SETUP]
    setup.case = item.nodeid
    begin(item)
    reports = _traced(item, nextitem)
    why = _host_lost(item)
    if why:
        log.warning("%s: its host was lost; it runs again: %s", item.nodeid, why)
        item.stash[PROGRESS].lost = why
        begin(item, why)
        item._initrequest()  # type: ignore[attr-defined]
        reports = _traced(item, nextitem)
    setup.case = ""
    for report in reports:
        item.ihook.pytest_runtest_logreport(report=report)
    item.ihook.pytest_runtest_logfinish(nodeid=item.nodeid, location=item.location)


def _traced(item: pytest.Item, nextitem: pytest.Item | None) -> list[pytest.TestReport]:
    """Run setup, call and teardown, and record their actions in the case's directory."""
    directory = case_directory(item.config, item.nodeid)
    directory.mkdir(parents=True, exist_ok=True)
    with trace.record(directory / trace.FILE):
        return runtestprotocol(item, nextitem=nextitem, log=False)


def begin(item: pytest.Item, lost: str = "") -> None:
    item.config.stash[SETUP].take()
    item.stash[PROGRESS] = Progress(time.monotonic(), stamp.now(), lost=lost)
    if CASE in item.stash:
        del item.stash[CASE]


def _host_lost(item: pytest.Item) -> str:
    progress = item.stash[PROGRESS]
    callspec = getattr(item, "callspec", None)
    cell = callspec.params.get("cell") if callspec is not None else None
    if cell is None or not any(finding.outcome == INFRASTRUCTURE for _, finding in progress.findings):
        return ""
    return item.config.stash[RIG].lost(cell)


def phase(item: pytest.Item, call: pytest.CallInfo[None], report: pytest.TestReport) -> None:
    """One of setup, call and teardown has ended: judge it, gather evidence while there is any, and at last write."""
    progress, context = item.stash[PROGRESS], item.stash.get(CASE, None)
    setup, what = item.config.stash[SETUP].take()
    if setup:
        # JUnit's file and the line of the case have their times from here.
        report.duration = max(0.0, report.duration - setup)
        report.user_properties.append(("setup", f"{setup:.1f} s: {what}"))
    progress.seconds += report.duration
    progress.setup += setup
    if call.excinfo is not None:
        finding = judge(call.excinfo.value)
        if context is not None and finding.outcome not in (SKIPPED, PASSED):
            finding = _second_thought(item, context, finding)
            evidence.gather(context)
            if finding.outcome == FAILED and context.cell is not None and call.when != "teardown" and not _excused(item, finding):
                item.config.stash[RIG].keep(context.cell, context)
        _tell(report, call, finding)
        if issue := _excused(item, finding):
            match = KnownIssueMatch(issue.bug, issue.why)
            finding = Finding(KNOWN, f"known issue: {issue.line}\n{finding.reason}", finding.death, match)
            # As pytest has it: a failure that was expected.
            report.outcome, report.wasxfail = "skipped", f"known issue: {issue.line}"
        progress.findings.append((call.when, finding))
        report.user_properties.append(("outcome", finding.outcome.value))
        if context is not None and context.kept:
            (context.directory / "kept.txt").write_text(context.kept + "\n")
            report.longrepr = f"{report.longrepr}\n--- kept ---\n{context.kept}"
    elif call.when == "call" and (issue := _known(item)) is not None and not issue.sometimes:
        text = f"the case passes, but is listed as a known issue: {issue.line}\nRemove its entry from suites/{known.FILE}."
        match = KnownIssueMatch(issue.bug, issue.why, gone=True)
        progress.findings.append((call.when, Finding(FAILED, text, known_issue=match)))
        report.user_properties.append(("outcome", FAILED.value))
        report.outcome, report.longrepr = "failed", text
    if call.when == "teardown":
        _finish(item, progress, context)
    # What judging took (a host that is looked at) is in no phase's time.
    item.config.stash[SETUP].take()


def _excused(item: pytest.Item, finding: Finding) -> known.KnownIssue | None:
    """The known issue that a failure shows."""
    issue = _known(item)
    excused = issue is not None and finding.outcome == FAILED and issue.excuses(finding.reason, _identity(finding))
    return issue if excused else None


def _known(item: pytest.Item) -> known.KnownIssue | None:
    """The known issue that this case is expected to show in its cell."""
    callspec = getattr(item, "callspec", None)
    cell = callspec.params.get("cell") if callspec is not None else None
    if not isinstance(cell, cells.Cell) or callspec is None:
        return None
    case = known.case_id(item.path.parent.name, item.name.partition("[")[0], callspec.id, cell)
    return known.find(_issues(item.path.parent.parent), case, cell)


@functools.cache
def _issues(suites: Path) -> tuple[known.KnownIssue, ...]:
    return known.load(suites)


def _identity(finding: Finding) -> str:
    return finding.death.identity if finding.death else ""


def _second_thought(item: pytest.Item, context: CaseContext, finding: Finding) -> Finding:
    """A guest that fell silent on a broken host is not to blame."""
    silent = finding.death is None or finding.death.kind in ("hang", "eof")
    if context.cell is None or not silent:
        return finding
    sick = item.config.stash[RIG].check(context.cell)
    return Finding(INFRASTRUCTURE, f"{sick.message}\n(first seen as: {finding.reason})") if sick else finding


def _tell(report: pytest.TestReport, call: pytest.CallInfo[None], finding: Finding) -> None:
    """Make pytest's own report readable: our errors need no traceback through the harness."""
    if call.excinfo is None or not isinstance(call.excinfo.value, HarnessError):
        return
    frames = [entry for entry in call.excinfo.traceback if "/suites/" in str(entry.path) or "/tests/" in str(entry.path)]
    where = f"{frames[-1].path}:{frames[-1].lineno + 1}: " if frames else ""
    text = f"{where}[{finding.outcome}] {finding.reason}"
    if finding.death is not None and finding.death.excerpt:
        text += f"\n--- {speaker(finding.death.kind)} ---\n{plain(finding.death.excerpt)}"
    report.longrepr = text


def _finish(item: pytest.Item, progress: Progress, context: CaseContext | None) -> None:
    config = item.config
    directory = context.directory if context is not None else case_directory(config, item.nodeid)
    finding = _worst(progress)
    death = finding.death
    callspec = getattr(item, "callspec", None)
    cell = callspec.params.get("cell") if callspec is not None else None
    boots: tuple[Boot, ...] = ()
    metrics: dict[str, float] = {}
    inputs: dict[str, str] = {}
    if context is not None:
        boots = _boots(context)
        metrics, inputs = context.metrics, context.inputs
    if death is not None and context is not None:
        diagnosis.backtrace(death, context.guests, directory)
    formerly = tuple(name for mark in item.iter_markers("formerly") for name in mark.args)
    if progress.lost:
        inputs = {**inputs, "run again because": progress.lost}
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
        boots=boots,
        inputs=inputs,
        files=_files(directory),
        started=progress.started,
        directory=directory.name,
        title=title(item),
        metrics=metrics,
        phase=progress.findings[0][0] if progress.findings else "",
        formerly=formerly,
        setup=round(progress.setup, 3),
        where=cell.where if isinstance(cell, cells.Cell) else NOWHERE,
        known_issue=finding.known_issue,
        death=DeathRecord(death.kind, death.identity, death.message) if death else None,
        parameters=own_parameters(item.nodeid, str(cell or "")),
    )
    model.write_case(directory, result)
    _attach(config, directory, result)


def _attach(config: pytest.Config, directory: Path, result: CaseResult) -> None:
    """Give allure the case's files, where allure's results are wanted."""
    if not config.getoption("allure_report_dir", default=None):
        return
    import allure

    for name in result.files:
        if not name.endswith(".idx"):
            allure.attach.file(directory / name, name=name, attachment_type=allure.attachment_type.TEXT)  # type: ignore[no-untyped-call]


def _worst(progress: Progress) -> Finding:
    """The first finding that is no pass; a teardown's does not hide the call's."""
    return progress.findings[0][1] if progress.findings else Finding(PASSED, "")


def _boots(context: CaseContext) -> tuple[Boot, ...]:
    found = [context.warm_boot] if context.warm_boot else []
    for guest in context.guests:
        if guest.unpaused:
            death = guest.console.death
            died = round(death.at - guest.unpaused, 3) if death is not None and death.at is not None else None
            console = guest.console
            reached = tuple(Stamp(*stamp) for stamp in stage_times(guest))
            said = death.message if death is not None else ""
            found.append(Boot(guest.name, reached, died, guest.unpaused, console.log_path.name, console.boot_offset, said))
    return tuple(found)


# -- the end ----------------------------------------------------------------------------------------------------------


def stop_mark(config: pytest.Config) -> Path | None:
    """The file that tells all workers of a run to stop; None before the run has a directory."""
    path = config.stash.get(RUN, None)
    return path / ".stop" if path is not None and path.is_dir() else None


def forget_stop(config: pytest.Config) -> None:
    """A run that is resumed goes on, also after ``-x`` stopped it."""
    if (mark := stop_mark(config)) is not None:
        mark.unlink(missing_ok=True)


def crashed(config: pytest.Config, nodeid: str, why: str) -> str:
    """A worker ended while it ran the case: nothing was learned of it. Returns the reason, or "" for a case that is none of ours.

    What a worker wrote before it ended stands, unless it is of a try that a resumed run repeats.
    """
    path, _, name = nodeid.rpartition("::")
    parameters = name.partition("[")[2].removesuffix("]")
    named = [cell for cell in cells_of(config) if f"-{cell}-" in f"-{parameters}-"]
    if not named:
        return ""
    reason = f"{why}: killed, or out of memory?"
    if nodeid not in finished(config):
        directory = case_directory(config, nodeid)
        case = name.partition("[")[0]
        cell = max(named, key=lambda cell: len(str(cell)))
        result = CaseResult(
            nodeid=nodeid,
            suite=Path(path).parent.name,
            case=case,
            cell=str(cell),
            outcome=INFRASTRUCTURE,
            seconds=0.0,
            reason=reason,
            files=_files(directory),
            started=stamp.now(),
            directory=directory.name,
            title=case,
            where=cell.where,
            parameters=own_parameters(nodeid, str(cell)),
        )
        model.write_case(directory, result)
    return reason


def _files(directory: Path) -> tuple[str, ...]:
    return tuple(sorted(file.name for file in directory.iterdir() if file.name != "case.json"))


def end(config: pytest.Config, code: Callable[[tuple[CaseResult, ...]], int]) -> None:
    """Give the hosts back; the controller writes the run's result and its page. ``code`` is the exit code of a run of such cases."""
    try:
        if RIG in config.stash:
            config.stash[RIG].close()
    except HarnessError as exc:
        log.error("a host could not be given back: %s", exc)
    finally:
        path = config.stash.get(RUN, None)
        if not hasattr(config, "workerinput") and path is not None and (path / "run.json").exists():
            forget_stop(config)
            _publish(path, code)


def _publish(path: Path, code: Callable[[tuple[CaseResult, ...]], int]) -> None:
    from harness.report import publish

    run = model.read_run(path)
    run = replace(run, ended=stamp.now(), exit_code=code(run.cases))
    model.write_run(path, run)
    publish(path, run)
