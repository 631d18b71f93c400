# SPDX-License-Identifier: BSD-2-Clause
"""Writes the result of a case, ``case.json``, from what its phases collected."""

from __future__ import annotations

from pathlib import Path

import pytest

from harness import stamp
from harness.plugin import backtraces, case_complaints, case_issues
from harness.plugin.case_context import CaseContext, stage_times
from harness.plugin.cells import Cell, cell_of
from harness.plugin.outcome import PhaseResult
from harness.plugin.selection import title
from harness.plugin.state import Attempt, case_directory
from harness.results import model
from harness.results.model import INFRASTRUCTURE, PASSED, SKIPPED, Boot, CaseResult, ComplaintRecord, DeathRecord, Stamp
from harness.results.where import NOWHERE, own_parameters


def write(item: pytest.Item, attempt: Attempt, context: CaseContext | None) -> None:
    """Write the result of ``item`` after its last phase. ``context`` is None if the fixture ``case`` was not set up."""
    config = item.config
    directory = context.directory if context is not None else case_directory(config, item.nodeid)
    # The first one counts: an error of teardown does not hide that of the call.
    phase, first = attempt.results[0] if attempt.results else ("", PhaseResult(PASSED, ""))
    death, cell = first.death, cell_of(item)
    inputs = dict(context.inputs) if context is not None else {}
    if attempt.lost:
        inputs["run again because"] = attempt.lost
    if death is not None and context is not None:
        backtraces.guest(death, context.guests, directory)
    result = CaseResult(
        nodeid=item.nodeid,
        suite=item.path.parent.name,
        case=item.name.partition("[")[0],
        cell=str(cell or ""),
        outcome=first.outcome,
        seconds=round(attempt.seconds, 3),
        reason=first.reason,
        identity=death.identity if death else "",
        excerpt=death.excerpt if death else "",
        boots=_boots(context) if context is not None else (),
        inputs=inputs,
        files=files_of(directory),
        started=attempt.started,
        directory=directory.name,
        title=title(item),
        metrics=context.metrics if context is not None else {},
        phase=phase,
        formerly=tuple(name for mark in item.iter_markers("formerly") for name in mark.args),
        setup=round(attempt.setup, 3),
        where=cell.where if cell is not None else NOWHERE,
        known_issue=first.known_issue,
        complaints=_complaints(item, directory, context) if first.outcome not in (SKIPPED, INFRASTRUCTURE) else None,
        death=DeathRecord(death.kind, death.identity, death.message) if death else None,
        parameters=own_parameters(item.nodeid, str(cell or "")),
        paused=attempt.paused,
    )
    model.write_case(directory, result)
    _attach_to_allure(config, directory, result)


def write_crashed(config: pytest.Config, nodeid: str, cell: Cell, reason: str) -> None:
    """Write an infrastructure failure for a case whose worker ended before it could write the result."""
    path, _, name = nodeid.rpartition("::")
    case = name.partition("[")[0]
    directory = case_directory(config, nodeid)
    result = CaseResult(
        nodeid=nodeid,
        suite=Path(path).parent.name,
        case=case,
        cell=str(cell),
        outcome=INFRASTRUCTURE,
        seconds=0.0,
        reason=reason,
        files=files_of(directory),
        started=stamp.now(),
        directory=directory.name,
        title=case,
        where=cell.where,
        parameters=own_parameters(nodeid, str(cell)),
    )
    model.write_case(directory, result)


def files_of(directory: Path) -> tuple[str, ...]:
    """The names of the case's files that its result lists: ``NAME``, and ``lost/NAME`` of an attempt that lost its host."""
    files = [*directory.iterdir(), *directory.glob(f"{model.LOST}/*")]
    return tuple(sorted(str(file.relative_to(directory)) for file in files if file.name not in ("case.json", model.LOST)))


def _complaints(item: pytest.Item, directory: Path, context: CaseContext | None) -> tuple[ComplaintRecord, ...] | None:
    """The complaints of the case, each with the known issue that covers it. None if no console and no log was searched."""
    found = case_complaints.find(directory, context.logs if context is not None else {})
    return case_issues.mark_complaints(item, found) if found else found


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


def _attach_to_allure(config: pytest.Config, directory: Path, result: CaseResult) -> None:
    """Attach the files of the case, if allure's results are written."""
    if not config.getoption("allure_report_dir", default=None):
        return
    import allure

    for name in result.files:
        if not name.endswith((".idx", model.DUMP_SUFFIX)):
            allure.attach.file(directory / name, name=name, attachment_type=allure.attachment_type.TEXT)  # type: ignore[no-untyped-call]
