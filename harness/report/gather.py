# SPDX-License-Identifier: BSD-2-Clause
"""Compare a run with the history, and collect the result in a Report."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from harness.history.rows import Row, metrics_of, observation
from harness.history.store import History
from harness.report import actions, boot_consoles, tested
from harness.report.command import rerun_command
from harness.report.complaints import known_complaints, new_complaints
from harness.report.evidence import backtrace, domain_config
from harness.report.model import CaseReport, Report
from harness.report.outcomes import matrix, strip
from harness.report.sentence import sentence
from harness.report.setup_steps import setup_steps
from harness.report.trends import BOOTS, trends
from harness.results.merge import missing_shards
from harness.results.model import FAILED, PASSED, SKIPPED, CaseResult, RunResult, Stamp
from harness.verdicts.drift import WINDOW, drifts
from harness.verdicts.run_verdicts import Key, gone, judge_run
from harness.verdicts.values import KINDS, Baseline, LastGreen, NamedRun, Unreadable, Verdict

# Number of runs that verdicts use, that the page shows, and whose metrics are read for drifts and plots.
REACH, SHOWN, MEASURED = 200, 30, 60


def gather(
    path: Path,
    run: RunResult,
    history: History | None,
    *,
    baseline: Baseline = LastGreen(),  # noqa: B008 - a frozen value
) -> Report:
    """The report of ``run``. ``path`` is its directory, which has the domains' configurations. Raises the errors of History.

    ``history`` is None if it cannot be read.
    """
    number = history.number(run.run) if history else 0
    rows = _rows(history, baseline, number) if history else ()
    past: dict[Key, list[Row]] = {}
    for row in rows:
        past.setdefault((row.seen.case, row.seen.cell), []).append(row)
    seen = {key: [row.seen for row in found] for key, found in past.items()}
    results = {(case.key, case.cell): case for case in sorted(run.cases, key=lambda case: case.started)}
    now = [observation(run, case) for case in results.values()]
    verdicts = judge_run(now, seen, baseline=baseline if history else Unreadable())
    shown = (*list(dict.fromkeys(row.seen.run for row in rows))[-(SHOWN - 1) :], run.run)
    cases = [_case(path, run, case, verdicts[key], past.get(key, []), shown) for key, case in results.items()]
    red = any(case.outcome == FAILED for case in run.cases)
    cases.sort(key=lambda item: (KINDS.index(item.verdict.kind), item.result.suite, item.result.key, item.result.cell))
    worse = sum(drift.worse for item in cases for drift in item.drifts)
    return Report(
        run=run,
        sentence=sentence(run, [(item.result, item.verdict) for item in cases], worse),
        baseline=str(baseline),
        cases=tuple(cases),
        matrix=matrix(run, rows, shown),
        runs=shown,
        trends=trends(run, [(item.result, item.drifts) for item in cases], past),
        # The cases of another shard are not gone.
        gone=gone(now, seen, rows[-1].seen.run if rows and not _is_partial(run) else ""),
        inputs=tested.inputs(run),
        changed=tested.changes(now, seen),
        setup=setup_steps(run, history.setups(number, MEASURED) if history else ()),
        complaints=new_complaints(run, history.complaints(number, REACH) if history else {}),
        known_complaints=known_complaints(run),
        console_changes=boot_consoles.changes(_boots(path, results, past)) if red else (),
    )


def _is_partial(run: RunResult) -> bool:
    return bool(missing_shards(run.inputs.get("shard", "").split(" | ")))


def _boots(path: Path, results: Mapping[Key, CaseResult], past: Mapping[Key, Sequence[Row]]) -> list[tuple[str, str, Path, Path]]:
    """The directories of the boot of each cell, in its last run that passed and in this run."""
    found = []
    for (key, cell), case in results.items():
        passed = [row for row in past.get((key, cell), ()) if row.seen.outcome == PASSED]
        if key == BOOTS and passed:
            before = passed[-1]
            earlier = path.parent / before.seen.run / "cases" / before.directory
            found.append((cell, before.seen.run, earlier, path / "cases" / case.directory))
    return found


def _rows(history: History, baseline: Baseline, number: int) -> tuple[Row, ...]:
    """The results before run ``number``, oldest first. A named baseline may be older than the last REACH runs."""
    rows = history.results(before=number, last=REACH, measured=MEASURED)
    if not isinstance(baseline, NamedRun) or any(row.seen.run == baseline.run for row in rows):
        return rows
    return tuple(row for row in history.results(run=baseline.run) if row.number < number) + rows


def _case(path: Path, run: RunResult, case: CaseResult, verdict: Verdict, past: Sequence[Row], shown: Sequence[str]) -> CaseReport:
    """``past`` are the case's results in the history, oldest first; ``shown`` the runs of the strip."""
    directory = path / "cases" / case.directory
    red = case.outcome not in (PASSED, SKIPPED)
    passes = [row for row in past if row.seen.outcome == PASSED]
    measured = [row.metrics for row in passes[-WINDOW:]]
    return CaseReport(
        result=case,
        verdict=verdict,
        drifts=drifts(case.key, case.cell, metrics_of(case), measured) if case.outcome == PASSED else (),
        strip=strip(run, case, past, shown),
        usual=_stages(passes[-1]) if passes and case.boots else (),
        usual_run=passes[-1].seen.run if passes else "",
        rerun=rerun_command(run, case),
        config=domain_config(directory, case) if red else "",
        backtrace=backtrace(directory) if red else "",
        events=actions.load(directory) if red else (),
    )


def _stages(row: Row) -> tuple[Stamp, ...]:
    """The stages of the first boot, which the history stores as metrics."""
    return tuple(Stamp(name.removeprefix("stage "), at) for name, at in row.metrics.items() if name.startswith("stage "))
