# SPDX-License-Identifier: BSD-2-Clause
"""The page of a run: one file, nothing from the network, no script, all that guests said escaped."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import jinja2
from markupsafe import Markup

from harness.console.text import plain
from harness.report import console, plot
from harness.report.console import Line
from harness.report.gather import CaseReport, Report, around_death
from harness.results.model import PASSED, SKIPPED, Boot, Stamp
from harness.verdicts import values

# What consoles and captures may take of a page: beyond it the files beside it are linked, and not shown.
_BUDGET = 5_000_000
_CAPTURE = 6_000
# Lines of a death on the first screen, and how many new failures are there with them.
_EXCERPT, _IN_FULL = 12, 3
# A class for each verdict: its colour and its letter.
TONES = {
    values.REGRESSION: "bad", values.BASELINE_UNTESTED: "bad", values.NEVER_PASSED: "bad", values.KNOWN_GONE: "odd",
    values.STILL_FAILING: "old", values.FLAKY: "odd", values.BLOCKED: "lost", values.INFRASTRUCTURE: "lost", values.KNOWN: "old",
    values.FIXED: "good", values.NEW: "good", values.PASS: "good", values.SKIP: "none",
}  # fmt: skip
# Outcomes in strips and matrices: class and letter, so that colour is not all there is.
SQUARES = {
    "passed": ("p", "·"),
    "failed": ("f", "F"),
    "harness": ("h", "H"),
    "infrastructure": ("i", "I"),
    "known": ("k", "k"),
    "skipped": ("s", " "),
}


@dataclass(frozen=True)
class Bar:
    """One stage of a timeline, in percent of the longest boot on the page."""

    name: str
    at: float
    left: float
    width: float


@dataclass(frozen=True)
class Timeline:
    """Stages as bars, and where the boot died (s, and percent)."""

    label: str
    bars: tuple[Bar, ...]
    died: float | None = None
    died_at: float = 0.0


@dataclass(frozen=True)
class Panel:
    """A console with its times; ``merged`` with the hypervisor's log; ``left_out`` when the page has no room for it."""

    name: str
    lines: tuple[Line, ...]
    merged: bool = False
    left_out: bool = False


def render(path: Path, report: Report) -> str:
    """The page as text. ``path`` is the run's directory, where consoles are looked up."""
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("harness.report"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        # Whatever a guest said, wherever it went: no control characters reach the page.
        finalize=lambda value: plain(value) if type(value) is str else value,
    )
    stamps = [stamp.at for item in report.cases for boot in item.result.boots for stamp in boot.stages]
    longest = max([*stamps, *(stamp.at for item in report.cases for stamp in item.usual)], default=1.0)
    room = _Room(_BUDGET)
    items = [_item(path, item, number, longest, room) for number, item in enumerate(report.cases)]
    _choose(report.news, items)
    return environment.get_template("run.html.j2").render(
        report=report,
        run=report.run,
        items=items,
        anchors={item.result.nodeid: entry["anchor"] for item, entry in zip(report.cases, items, strict=True)},
        worse=[(item, drift) for item, case in zip(items, report.cases, strict=True) for drift in case.drifts if drift.worse],
        tones=TONES,
        squares=SQUARES,
        plots=[(trend, Markup(plot.svg(trend))) for trend in report.trends],
        tone=_tone(report),
        files=[name for name in ("report.json", "mail.eml", "junit.xml") if (path / name).exists() or name != "junit.xml"],
    )


def _tone(report: Report) -> str:
    """Of the sentence: green where all was learned, and nothing of it is bad."""
    if any(item.verdict.is_bad for item in report.cases):
        return "bad"
    if report.news:
        return "odd"
    return "lost" if any(item.verdict.kind == values.INFRASTRUCTURE for item in report.cases) else "good"


def _choose(news: Sequence[CaseReport], items: list[dict[str, object]]) -> None:
    """Which new failures the first screen tells in full: the first of each death, and not too many."""
    told: set[str] = set()
    by_case = {id(item["case"]): item for item in items}
    for case in (item.result for item in news):
        same = bool(case.identity) and case.identity in told
        by_case[id(case)] |= {"same_death": same, "in_full": not same and len(told) < _IN_FULL}
        told.add(case.identity or case.nodeid)


class _Room:
    def __init__(self, size: int) -> None:
        self.left = size

    def take(self, size: int) -> bool:
        if size > self.left:
            return False
        self.left -= size
        return True


def _item(path: Path, item: CaseReport, number: int, longest: float, room: _Room) -> dict[str, object]:
    case = item.result
    red = case.outcome not in (PASSED, SKIPPED)
    directory = path / "cases" / case.directory
    timelines = [timeline(boot.domain, boot.stages, boot.died, longest) for boot in case.boots]
    if item.usual and (red or item.drifts):
        timelines.append(timeline(f"as it was in {item.usual_run}", item.usual, None, longest))
    return {
        "case": case,
        "verdict": item.verdict,
        "drifts": item.drifts,
        "strip": item.strip,
        "again": item.again,
        "anchor": f"case-{number}",
        "open": item.verdict.is_news,
        "excerpt": around_death(case, _EXCERPT),
        "timelines": timelines,
        "panels": list(_panels(directory, case.boots, case.files, room)) if red else [],
        "captures": list(_captures(directory, case.files, room)) if red else [],
        "files": [name for name in case.files if not name.endswith((".idx", ".clock"))],
    }


def timeline(label: str, stages: tuple[Stamp, ...], died: float | None, longest: float) -> Timeline:
    """Each stage lasts until the next is reached; a boot that died ends there."""
    scale = 100 / max(longest, died or 0, 0.001)
    if not stages:
        return Timeline(label, (), died, min(99.6, (died or 0) * scale))
    ends = [*(stamp.at for stamp in stages[1:]), died or stages[-1].at]
    bars = tuple(
        Bar(stamp.name, stamp.at, stamp.at * scale, max(0.4, (min(end, longest) - stamp.at) * scale))
        for stamp, end in zip(stages, ends, strict=True)
    )
    return Timeline(label, bars, died, min(99.6, (died or 0) * scale))


def _panels(directory: Path, boots: tuple[Boot, ...], files: tuple[str, ...], room: _Room) -> list[Panel]:
    found = []
    for name in (name for name in files if name.endswith(".console.log")):
        boot = next((boot for boot in reversed(boots) if boot.console == name), None)
        try:
            guest = console.lines(directory / name, boot)
        except OSError:
            continue
        xen = console.xen_lines(*_hypervisor(directory), boot.unpaused if boot else None)
        shown = console.merge(guest, xen) if xen else guest
        if room.take(sum(len(line.text) + 40 for line in shown)):
            found.append(Panel(name, tuple(shown), bool(xen)))
        else:
            found.append(Panel(name, (), left_out=True))
    return found


def _hypervisor(directory: Path) -> tuple[str, float | None]:
    """Xen's log, and when its last stamped line was printed (monotonic s)."""
    try:
        text = (directory / "xl-dmesg.log").read_text("utf-8", "replace")
        return text, float(json.loads((directory / "xl-dmesg.clock").read_text())["monotonic"])
    except (OSError, ValueError, KeyError, TypeError):
        return "", None


def _captures(directory: Path, files: tuple[str, ...], room: _Room) -> list[tuple[str, str]]:
    """The domain's configuration whole, of the hypervisor's log and the toolstack's the end."""
    found = []
    for name in sorted(files, key=lambda name: (not name.endswith(".cfg"), name)):
        if name.endswith((".cfg", "xl-dmesg.log", "xl-list.txt")) or (name.startswith("xl-") and name.endswith(".log")):
            try:
                with (directory / name).open("rb") as stream:
                    stream.seek(max(0, (directory / name).stat().st_size - _CAPTURE))
                    text = stream.read().decode("utf-8", "replace")
            except OSError:
                continue
            if text.strip() and room.take(len(text)):
                found.append((name, text))
    return found
