# SPDX-License-Identifier: BSD-2-Clause
"""The HTML page of a run: one file without scripts and network access. Guest output is escaped."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from markupsafe import Markup

from harness.report import actions, case_timeline, plot
from harness.report.console import Line
from harness.report.evidence import around_death, finding_rows, without_cause
from harness.report.model import CaseReport, Report
from harness.report.templating import SQUARES, environment
from harness.results.model import PASSED, SKIPPED, Stamp
from harness.verdicts import values

# Size of all consoles and captures on the page (characters). Beyond it the page only links the files.
_BUDGET = 5_000_000
_CAPTURE = 6_000
# Files of a case that the page shows.
_CAPTURED = re.compile(
    r".*\.cfg|.*xl-dmesg\.log|.*xl-list\.txt|xl-.*\.log|(?:vcpus|messages|dump|network|disks)-.*\.txt", re.DOTALL
)
# Console lines around a death on the first screen, and the number of new failures that have them.
_EXCERPT, _IN_FULL = 12, 3
# New console lines of a cell, and lines that are gone.
_CONSOLE_LINES = 200
# Length of a failure's reason on the first screen, in characters.
_SHORT = 1500
# The CSS class of each verdict.
TONES = {
    values.REGRESSION: "bad", values.BASELINE_UNTESTED: "bad", values.NEVER_PASSED: "bad", values.KNOWN_GONE: "odd",
    values.STILL_FAILING: "old", values.FLAKY: "odd", values.BLOCKED: "lost", values.INFRASTRUCTURE: "lost", values.KNOWN: "old",
    values.FIXED: "good", values.NEW: "good", values.PASS: "good", values.SKIP: "none", values.PAUSED: "lost",
}  # fmt: skip
SOURCES = {
    "guest": "guest",
    "xen": "hypervisor",
    "dom0": "dom0's kernel",
    "xenstore": "xenstore",
    "qemu": "device model",
    "action": "actions",
}
"""Sources of a time line that a reader can hide, with their labels."""

USUAL = "last run that passed"
"""Label of the timeline for comparison."""


@dataclass(frozen=True)
class Bar:
    """A stage of a timeline. ``at`` is in seconds, ``left`` and ``width`` in percent of the longest boot on the page."""

    name: str
    at: float
    left: float
    width: float


@dataclass(frozen=True)
class Timeline:
    """The stages of a boot, and its death in seconds and in percent."""

    label: str
    bars: tuple[Bar, ...]
    died: float | None = None
    died_at: float = 0.0


@dataclass(frozen=True)
class Panel:
    """The time line of a console. ``kinds`` are the sources it has. ``left_out``: not shown, because the page is too long."""

    name: str
    lines: tuple[Line, ...]
    kinds: tuple[str, ...] = ()
    left_out: bool = False
    since: str = ""
    """Where its times begin."""


def render(path: Path, report: Report) -> str:
    """The page as HTML text. ``path`` is the run's directory, which has the consoles."""
    stamps = [stamp.at for item in report.cases for boot in item.result.boots for stamp in boot.stages]
    longest = max([*stamps, *(stamp.at for item in report.cases for stamp in item.usual)], default=1.0)
    budget = _Budget(_BUDGET)
    items = [_item(path, item, number, longest, budget) for number, item in enumerate(report.cases)]
    _choose_full(report.news, items)
    return (
        environment()
        .get_template("run.html.j2")
        .render(
            report=report,
            run=report.run,
            items=items,
            anchors={item.result.nodeid: entry["anchor"] for item, entry in zip(report.cases, items, strict=True)},
            worse=[(item, drift) for item, case in zip(items, report.cases, strict=True) for drift in case.drifts if drift.worse],
            tones=TONES,
            squares=SQUARES,
            usual=USUAL,
            mark=case_timeline.mark,
            stamp=case_timeline.stamp,
            labels=SOURCES,
            console_lines=_CONSOLE_LINES,
            plots=[(trend, Markup(plot.svg(trend))) for trend in report.trends],
            tone=_tone(report),
            files=[name for name in ("report.json", "mail.eml", "junit.xml") if (path / name).exists() or name != "junit.xml"],
        )
    )


def _tone(report: Report) -> str:
    """The CSS class of the sentence: ``good`` only if all cases were judged and none is news."""
    if any(item.verdict.is_bad for item in report.cases):
        return "bad"
    if report.news:
        return "odd"
    return "lost" if any(item.verdict.kind in (values.INFRASTRUCTURE, values.PAUSED) for item in report.cases) else "good"


def _choose_full(news: Sequence[CaseReport], items: list[dict[str, object]]) -> None:
    """Choose the failures that the first screen shows in full: the first of each death, up to the limit."""
    shown: set[str] = set()
    by_case = {id(item["case"]): item for item in items}
    for case in (item.result for item in news):
        same = bool(case.identity) and case.identity in shown
        by_case[id(case)] |= {"same_death": same, "in_full": not same and len(shown) < _IN_FULL}
        shown.add(case.identity or case.nodeid)


class _Budget:
    """The characters that are left for consoles and captures."""

    def __init__(self, size: int) -> None:
        self.left = size

    def take(self, size: int) -> bool:
        if size > self.left:
            return False
        self.left -= size
        return True


def _item(path: Path, item: CaseReport, number: int, longest: float, budget: _Budget) -> dict[str, object]:
    case = item.result
    red = case.outcome not in (PASSED, SKIPPED)
    directory = path / "cases" / case.directory
    finding, cause = without_cause(case.reason)
    timelines = [timeline(boot.domain, boot.stages, boot.died, longest) for boot in case.boots]
    if item.usual and (red or item.drifts):
        timelines.append(timeline(f"{USUAL} ({item.usual_run})", item.usual, None, longest))
    return {
        "case": case,
        "verdict": item.verdict,
        "drifts": item.drifts,
        "strip": item.strip,
        "rerun": item.rerun,
        "finding": finding_rows(case.reason),
        "short_finding": (*finding_rows(finding[:_SHORT]), *finding_rows(cause[:_SHORT])),
        "anchor": f"case-{number}",
        "open": item.verdict.is_news,
        "excerpt": around_death(case, _EXCERPT),
        "timelines": timelines,
        "panels": _panels(directory, item, budget) if red else [],
        "actions": actions.last(item.events),
        "backtrace": item.backtrace,
        "captures": list(_captures(directory, case.files, budget)) if red else [],
        "files": [name for name in case.files if not name.endswith((".idx", ".clock"))],
    }


def timeline(label: str, stages: tuple[Stamp, ...], died: float | None, longest: float) -> Timeline:
    """A stage lasts until the next one is reached, the last one until the death. ``died`` and ``longest`` are in seconds."""
    scale = 100 / max(longest, died or 0, 0.001)
    if not stages:
        return Timeline(label, (), died, min(99.6, (died or 0) * scale))
    ends = [*(stamp.at for stamp in stages[1:]), died or stages[-1].at]
    bars = tuple(
        Bar(stamp.name, stamp.at, stamp.at * scale, max(0.4, (min(end, longest) - stamp.at) * scale))
        for stamp, end in zip(stages, ends, strict=True)
    )
    return Timeline(label, bars, died, min(99.6, (died or 0) * scale))


def _panels(directory: Path, item: CaseReport, budget: _Budget) -> list[Panel]:
    """The time line of each console of a case."""
    found = []
    for name in case_timeline.consoles(item.result.files):
        try:
            shown = case_timeline.build(directory, name, item.result, item.events)
        except OSError:
            continue
        if budget.take(sum(len(line.text) + 40 for line in shown)):
            kinds = tuple(kind for kind in SOURCES if any(line.kind == kind for line in shown))
            since = "the domain was unpaused" if case_timeline.boot_of(item.result, name) else "the case began"
            found.append(Panel(name, tuple(shown), kinds, since=since))
        else:
            found.append(Panel(name, (), left_out=True))
    return found


def _captures(directory: Path, files: tuple[str, ...], budget: _Budget) -> list[tuple[str, str]]:
    """(name, end of the text) of configuration, vCPU stacks, kernel messages, counters, headers of dumps, and logs of Xen and xl."""
    found = []
    for name in sorted(files, key=lambda name: (not name.endswith(".cfg"), name)):
        if _CAPTURED.fullmatch(name):
            try:
                with (directory / name).open("rb") as stream:
                    stream.seek(max(0, (directory / name).stat().st_size - _CAPTURE))
                    text = stream.read().decode("utf-8", "replace")
            except OSError:
                continue
            if text.strip() and budget.take(len(text)):
                found.append((name, text))
    return found
