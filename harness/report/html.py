"""The page of a run: one file, nothing from the network, all that guests said escaped."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import jinja2

from harness.console.text import decode, plain
from harness.results.model import FAILED, HARNESS, INFRASTRUCTURE, KNOWN, PASSED, SKIPPED, Boot, CaseResult, RunResult

_ORDER = {FAILED: 0, HARNESS: 1, INFRASTRUCTURE: 2, KNOWN: 3, PASSED: 4, SKIPPED: 5}
# Of a console log the page shows the end; the whole file is beside it.
_TAIL = 24_000


@dataclass(frozen=True)
class Bar:
    """One stage of a timeline, in percent of the longest boot on the page."""

    name: str
    at: float
    seconds: float
    left: float
    width: float


@dataclass(frozen=True)
class Line:
    """A boot's timeline: its bars, and where it died."""

    domain: str
    bars: tuple[Bar, ...]
    died: float | None
    died_at: float


def render(path: Path, run: RunResult) -> str:
    """The page as text. ``path`` is the run's directory, where consoles are looked up."""
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("harness.report"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        # Whatever a guest said, wherever it went: no control characters reach the page.
        finalize=lambda value: plain(value) if type(value) is str else value,
    )
    longest = max((stamp.at for case in run.cases for boot in case.boots for stamp in boot.stages), default=1.0)
    cases = sorted(run.cases, key=lambda case: (_ORDER[case.outcome], case.suite, case.case, case.cell))
    return environment.get_template("run.html.j2").render(
        run=run,
        verdict=verdict(run),
        cases=[
            {
                "case": case,
                "anchor": f"case-{number}",
                "lines": [line(boot, longest) for boot in case.boots],
                "consoles": list(_consoles(path, case)),
                "rerun": f"fxh run {case.suite} -k '{case.case} and {case.cell}'",
            }
            for number, case in enumerate(cases)
        ],
        matrix=matrix(run),
        inputs=_shared_inputs(run),
        outcomes=(FAILED, HARNESS, INFRASTRUCTURE, KNOWN, PASSED, SKIPPED),
    )


def verdict(run: RunResult) -> str:
    """The run in one sentence."""
    failed, lost, ours = run.count(FAILED), run.count(INFRASTRUCTURE), run.count(HARNESS)
    judged = run.count(PASSED) + run.count(KNOWN) + failed
    rest = f"; nothing was learned from {lost} case{'s' * (lost != 1)} (infrastructure)" if lost else ""
    rest += f"; {ours} bug{'s' * (ours != 1)} of the harness" if ours else ""
    if not run.ended:
        rest += "; the run did not end by itself"
    if failed:
        return f"{failed} of {judged} cases failed{rest}."
    if judged:
        known = run.count(KNOWN)
        but = f", but for {known} known issue{'s' * (known != 1)}" if known else ""
        return f"All {judged} cases that could be judged passed{but}{rest}."
    return f"No case was judged{rest}."


def matrix(run: RunResult) -> dict[str, dict[str, dict[str, int]]]:
    """Suite -> cell -> outcome -> how many."""
    found: dict[str, dict[str, dict[str, int]]] = {}
    for case in run.cases:
        row = found.setdefault(case.suite, {}).setdefault(case.cell, {})
        row[case.outcome] = row.get(case.outcome, 0) + 1
    return found


def line(boot: Boot, longest: float) -> Line:
    """A boot as bars: each stage lasts until the next is reached."""
    bars = []
    ends = [*(stamp.at for stamp in boot.stages[1:]), boot.died]
    scale = 100 / max(longest, 0.001)
    for stamp, next_at in zip(boot.stages, ends, strict=False):
        end = stamp.at if next_at is None else next_at
        seconds = max(0.0, end - stamp.at)
        bars.append(Bar(stamp.name, stamp.at, seconds, stamp.at * scale, max(0.4, min(100.0, end * scale) - stamp.at * scale)))
    return Line(boot.domain, tuple(bars), boot.died, min(100.0, (boot.died or 0) * scale))


def _consoles(path: Path, case: CaseResult) -> list[tuple[str, str]]:
    found = []
    for name in case.files:
        file = path / "cases" / case.directory / name
        if name.endswith(".console.log") and case.outcome not in (PASSED, SKIPPED) and file.is_file():
            with file.open("rb") as stream:
                stream.seek(max(0, file.stat().st_size - _TAIL))
                found.append((name, plain(decode(stream.read()))))
    return found


def _shared_inputs(run: RunResult) -> dict[str, str]:
    """Inputs that all cases agree on, with the run's own."""
    shared = dict(run.inputs)
    keys = {key for case in run.cases for key in case.inputs}
    for key in sorted(keys):
        values = {case.inputs[key] for case in run.cases if key in case.inputs}
        if len(values) == 1:
            shared[key] = values.pop()
    return shared
