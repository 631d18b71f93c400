# SPDX-License-Identifier: BSD-2-Clause
"""A run beside its history, as one value that every report is rendered from."""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from harness.history.rows import Row, metrics_of, observation, setup_of
from harness.history.store import History
from harness.report.sentence import sentence
from harness.report.trends import Trend, trends
from harness.results.model import FAILED, HARNESS, INFRASTRUCTURE, KNOWN, PASSED, SKIPPED, CaseResult, RunResult, Stamp
from harness.verdicts.drift import WINDOW, Drift, drifts
from harness.verdicts.run_verdicts import Key, gone, judge_run
from harness.verdicts.values import KINDS, Baseline, LastGreen, Observation, Verdict

# How many runs verdicts look back at, and how many a page shows.
REACH, SHOWN = 200, 30
# How many runs' metrics are looked at, for drifts and plots.
MEASURED = 60
# Characters of a domain's configuration.
_CONFIG = 4000

# In the order in which they are told, and the worst first.
_TOLD = (PASSED, KNOWN, FAILED, INFRASTRUCTURE, HARNESS, SKIPPED)
_WORST = {FAILED: 0, HARNESS: 1, INFRASTRUCTURE: 2, KNOWN: 3, PASSED: 4, SKIPPED: 5}


@dataclass(frozen=True)
class CaseReport:
    """One case of the run. ``strip`` are its last outcomes as (run, outcome), oldest first, this run's last.

    ``usual`` are the stages of the boot that it is compared with, from run ``usual_run``.
    """

    result: CaseResult
    verdict: Verdict
    drifts: tuple[Drift, ...] = ()
    strip: tuple[tuple[str, str], ...] = ()
    usual: tuple[Stamp, ...] = ()
    usual_run: str = ""
    again: str = ""
    config: str = ""
    """The domain's configuration, for a case that failed."""


@dataclass(frozen=True)
class SetupReport:
    """Something the run set up: the longest that anybody waited for it (s), and the cases that did. ``drift`` beside earlier runs."""

    what: str
    seconds: float
    started: str
    cases: tuple[CaseResult, ...] = ()
    drift: Drift | None = None


@dataclass(frozen=True)
class MatrixRow:
    """A suite in a cell: for each shown run the worst outcome ("" where it did not run), and how many had each."""

    suite: str
    cell: str
    runs: tuple[tuple[str, str, tuple[tuple[int, str], ...]], ...]


@dataclass(frozen=True)
class Report:
    """``runs`` are the shown ones, oldest first, this one last; ``changed`` are the inputs that differ from the run before."""

    run: RunResult
    sentence: str
    baseline: str
    cases: tuple[CaseReport, ...]
    matrix: tuple[MatrixRow, ...] = ()
    runs: tuple[str, ...] = ()
    trends: tuple[Trend, ...] = ()
    gone: tuple[Key, ...] = ()
    inputs: tuple[tuple[str, str], ...] = ()
    changed: tuple[tuple[str, str, str], ...] = ()
    note: str = ""
    setup: tuple[SetupReport, ...] = ()
    """In the order in which it began."""

    @property
    def news(self) -> tuple[CaseReport, ...]:
        return tuple(item for item in self.cases if item.verdict.is_news)

    def of(self, kind: str) -> tuple[CaseReport, ...]:
        return tuple(item for item in self.cases if item.verdict.kind == kind)


def gather(
    path: Path,
    run: RunResult,
    history: History | None,
    *,
    baseline: Baseline = LastGreen(),  # noqa: B008 - a frozen value
) -> Report:
    """``path`` is the run's directory, for what only its files know. Raises what the history raises."""
    number = history.number(run.run) if history else 0
    rows = history.results(before=number, last=REACH, measured=MEASURED) if history else ()
    if history and not isinstance(baseline, LastGreen):
        rows = _with_named(history, baseline, rows, number)
    past: dict[Key, list[Row]] = {}
    for row in rows:
        past.setdefault((row.seen.case, row.seen.cell), []).append(row)
    now = {(case.key, case.cell): (case, observation(run, case)) for case in sorted(run.cases, key=lambda case: case.started)}
    seen = {key: [row.seen for row in found] for key, found in past.items()}
    verdicts = judge_run([item for _, item in now.values()], seen, baseline=baseline)
    shown = (*list(dict.fromkeys(row.seen.run for row in rows))[-(SHOWN - 1) :], run.run)
    cases = [_case(path, run, case, verdicts[key], past.get(key, []), shown) for key, (case, _) in now.items()]
    cases.sort(key=lambda item: (KINDS.index(item.verdict.kind), item.result.suite, item.result.key, item.result.cell))
    last_run = rows[-1].seen.run if rows else ""
    return Report(
        run=run,
        sentence=sentence(
            run, [(item.result, item.verdict) for item in cases], sum(drift.worse for item in cases for drift in item.drifts)
        ),
        baseline=str(baseline),
        cases=tuple(cases),
        matrix=_matrix(run, rows, shown),
        runs=shown,
        trends=trends(run, cases_with_drift(cases), past),
        gone=gone([item for _, item in now.values()], seen, last_run),
        inputs=_shared_inputs(run),
        changed=_changes(now.values(), seen),
        setup=_setup(run, history.setups(number, MEASURED) if history else ()),
    )


def _setup(run: RunResult, past: Sequence[dict[str, float]]) -> tuple[SetupReport, ...]:
    seconds = setup_of(run.setup)
    left = {drift.metric: drift for drift in drifts("setup", "", seconds, past)}
    cases = {case.nodeid: case for case in run.cases}
    found = []
    for what, longest in seconds.items():
        steps = [step for step in run.setup if step.what == what]
        waited = tuple(cases[name] for name in dict.fromkeys(step.case for step in steps) if name in cases)
        found.append(SetupReport(what, longest, min(step.started for step in steps), waited, left.get(what)))
    return tuple(sorted(found, key=lambda item: item.started))


def cases_with_drift(cases: Iterable[CaseReport]) -> list[tuple[CaseResult, tuple[Drift, ...]]]:
    return [(item.result, item.drifts) for item in cases]


def _with_named(history: History, baseline: Baseline, rows: tuple[Row, ...], number: int) -> tuple[Row, ...]:
    """A baseline that was named may lie further back than verdicts usually look."""
    name = getattr(baseline, "run", "")
    if not name or any(row.seen.run == name for row in rows):
        return rows
    return tuple(row for row in history.results(run=name) if row.number < number) + rows


def _case(path: Path, run: RunResult, case: CaseResult, verdict: Verdict, past: list[Row], shown: tuple[str, ...]) -> CaseReport:
    visible = set(shown)
    strip = (*((row.seen.run, row.seen.shown) for row in past if row.seen.run in visible), (run.run, case.outcome))
    green = [row for row in past if row.seen.outcome == PASSED]
    found = (
        drifts(case.key, case.cell, metrics_of(case), [row.metrics for row in green[-WINDOW:]]) if case.outcome == PASSED else ()
    )
    usual: tuple[Stamp, ...] = ()
    if green and case.boots:
        stages = ((name[6:], at) for name, at in green[-1].metrics.items() if name.startswith("stage "))
        usual = tuple(Stamp(name, at) for name, at in stages)
    config = _config(path / "cases" / case.directory, case) if case.outcome == FAILED else ""
    return CaseReport(case, verdict, found, strip, usual, green[-1].seen.run if green else "", again(run, case), config)


def around_death(case: CaseResult, count: int) -> str:
    """``count`` lines of the console from just before the death on, or the last ones."""
    lines = case.excerpt.splitlines()
    words = case.boots[-1].death.split(" / ")[0] if case.boots else ""
    hits = [n for n, line in enumerate(lines) if words and words in line]
    start = max(0, hits[0] - 2) if hits else max(0, len(lines) - count)
    return "\n".join(lines[start : start + count])


def _config(directory: Path, case: CaseResult) -> str:
    """Of the domain that was made last; "" when there is none to be read."""
    names = [name for name in case.files if name.endswith(".cfg")]
    domain = case.boots[-1].domain if case.boots else ""
    chosen = next((name for name in names if name == f"{domain}.cfg"), names[-1] if names else "")
    try:
        return (directory / chosen).read_text("utf-8", "replace")[:_CONFIG] if chosen else ""
    except OSError:
        return ""


def again(run: RunResult, case: CaseResult) -> str:
    """The command that runs this case alone, with the same inputs."""
    return " ".join(["fxh run", case.suite, "-k", shlex.quote(selector(case)), *words(narrowed(run.options_of(case), case))])


def selector(case: CaseResult) -> str:
    """For pytest's ``-k``: this case in this cell and no other."""
    return case.nodeid.rpartition("::")[2]


def address(module: str, name: str) -> tuple[str, str]:
    """How JUnit and allure tell cases apart: ``suites.boot.test_boot`` and a name; only suite and file of the module count."""
    return ".".join(module.split(".")[-2:]), name


def address_of(case: CaseResult) -> tuple[str, str]:
    path, _, name = case.nodeid.rpartition("::")
    # A file from outside of the project that was named by itself has no path in its id, and no module in theirs.
    return address(f"{case.suite}.{Path(path).stem}" if path else "", name)


def narrowed(options: dict[str, str], case: CaseResult) -> dict[str, str]:
    """A run's options, without the guests, types, firmwares and Xens that the case's own cell has no need of."""
    found = dict(options)
    for name in ("guest", "type", "xen"):
        wanted = [word for word in options.get(name, "").split(",") if f"-{word}-" in f"-{case.cell}-"]
        if wanted:
            found[name] = ",".join(wanted)
    # Cells without a firmware in their names need no option for it.
    if "firmware" in found:
        found["firmware"] = "uefi" if "-uefi-" in case.cell else ""
    return {name: value for name, value in found.items() if value}


def words(options: dict[str, str]) -> list[str]:
    return [word for name, value in sorted(options.items()) for word in (f"--{name}", shlex.quote(value))]


def _matrix(run: RunResult, rows: Sequence[Row], shown: tuple[str, ...]) -> tuple[MatrixRow, ...]:
    visible = set(shown)
    tally: dict[tuple[str, str], dict[str, list[str]]] = {}
    for row in rows:
        if row.seen.run in visible:
            tally.setdefault((row.suite, row.seen.cell), {}).setdefault(row.seen.run, []).append(row.seen.shown)
    for case in run.cases:
        tally.setdefault((case.suite, case.cell), {}).setdefault(run.run, []).append(case.outcome)
    found = []
    for (suite, cell), runs in sorted(tally.items()):
        squares = []
        for name in shown:
            outcomes = runs.get(name, [])
            worst = min(outcomes, key=lambda outcome: _WORST.get(outcome, 0), default="")
            counts = tuple((outcomes.count(outcome), outcome) for outcome in _TOLD if outcome in outcomes)
            squares.append((name, worst, counts))
        found.append(MatrixRow(suite, cell, tuple(squares)))
    return tuple(found)


def _shared_inputs(run: RunResult) -> tuple[tuple[str, str], ...]:
    """The run's inputs, and those of its cases; where cells differ, each value with its cells."""
    found: dict[str, dict[str, set[str]]] = {name: {value: set()} for name, value in run.inputs.items()}
    for case in run.cases:
        for name, value in case.inputs.items():
            found.setdefault(name, {}).setdefault(value, set()).add(case.cell)
    lines = []
    for name, values in found.items():
        for value, cells in values.items():
            lines.append((name if len(values) == 1 else f"{name} ({', '.join(sorted(cells))})", value))
    return tuple(lines)


def _changes(now: Iterable[tuple[CaseResult, Observation]], past: dict[Key, list[Observation]]) -> tuple[tuple[str, str, str], ...]:
    """Input, before, now: against each case's result before."""
    found: dict[tuple[str, str, str], None] = {}
    for case, seen in now:
        before = [old for old in past.get((case.key, case.cell), []) if old.judged]
        if before and seen.judged:
            for name in before[-1].inputs.changes(seen.inputs):
                found[(name, before[-1].inputs.words(name), seen.inputs.words(name))] = None
    return tuple(found)
