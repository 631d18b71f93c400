# SPDX-License-Identifier: BSD-2-Clause
"""Static pages of all recorded runs: nights by branches and cells, trends, known issues and hosts. No server and no scripts.

A page is rendered again only if the digest of its inputs changed, so that one more night costs little.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from functools import cached_property, lru_cache, partial
from pathlib import Path
from typing import Any
from urllib.parse import quote

import filelock
from markupsafe import Markup, escape

from harness import __version__, paths
from harness.errors import InfrastructureError
from harness.history import nights
from harness.history.delivery import history_of
from harness.report import plot, site_data
from harness.report.site_data import Bad, Summary
from harness.report.site_files import STATE, SiteFiles
from harness.report.templating import SQUARES, environment
from harness.report.trends import Trend
from harness.results.model import FAILED, HARNESS, INFRASTRUCTURE, KNOWN, PASSED, WORST_FIRST, Outcome
from harness.safetext import plain
from harness.verdicts.drift import more_is_better

# Runs that have a page; that plots show; that the first page lists; nights of its matrix.
RUNS, PLOTTED, LISTED, NIGHTS = 1000, 60, 30, 30
# Plots of a cell besides its stages, bad results that the page of a run lists, faults of a host.
_PLOTS, _BAD, _FAULTS = 8, 200, 5
_REASON = 600
_LOCK_TIMEOUT = 60
_FORMAT = 1


@dataclass(frozen=True)
class Built:
    """The site. ``written``: the files that changed."""

    index: Path
    pages: int
    written: tuple[str, ...]


def build(reports: Path, directory: Path) -> Built:
    """Write the site of the history in ``reports`` into ``directory``.

    Raises UsageError for a directory that is not a site, InfrastructureError if it or the history cannot be used.
    """
    try:
        directory.mkdir(parents=True, exist_ok=True)
        with filelock.FileLock(directory / f"{STATE}.lock", timeout=_LOCK_TIMEOUT):
            return _Builder(reports, SiteFiles(directory)).build()
    except filelock.Timeout as exc:
        raise InfrastructureError(
            f"another process has written {directory} for {_LOCK_TIMEOUT} s", hint="wait until it ends, and run the command again"
        ) from exc
    except OSError as exc:
        raise InfrastructureError(f"{directory}: {exc.strerror}", hint="choose a directory that you can write") from exc


@dataclass
class _Builder:
    reports: Path
    files: SiteFiles
    runs: list[Summary] = field(default_factory=list)
    """Oldest first."""
    digests: dict[str, str] = field(default_factory=dict)
    """The digest of the inputs of each run's page, by run."""
    bad: dict[str, list[Bad]] = field(default_factory=dict)
    pages: dict[str, str] = field(default_factory=dict)
    """The digest of each page's content."""
    sources: dict[str, str] = field(default_factory=dict)
    """The digest of the inputs of each page."""
    old_sources: dict[str, str] = field(default_factory=dict)

    def build(self) -> Built:
        state = self.files.state()
        program = _program()
        if state.get("program") != program:
            state = {}
        self.old_sources = state.get("sources", {})
        self._read(state.get("runs", {}))
        for run in self.runs:
            self._page(f"runs/{_file(run.run)}", self.digests[run.run], partial(self._run, run))
        for month, runs in self._months.items():
            source = _digest([self.digests[run.run] for run in runs])
            self._page(f"nights/{month}.html", source, partial(self._month, month, runs))
        for cell in self._cells:
            self._page(f"cells/{_file(cell)}", self._source_of_cell(cell), partial(self._cell, cell))
        # The first page comes last: its links are valid at any time.
        everything = [*(self.digests[run.run] for run in self.runs), *map(site_data.Issue.shown, self._issues)]
        self._page("index.html", _digest(everything), self._index)
        kept = {run.run: [self.digests[run.run], run.dump()] for run in self.runs}
        self.files.finish({"program": program, "runs": kept, "sources": self.sources, "files": self.pages}, self.pages)
        return Built(self.files.directory / "index.html", len(self.pages), tuple(self.files.written))

    # -- data -----------------------------------------------------------------------------------------------------------

    def _read(self, old: Mapping[str, Any]) -> None:
        """Read the runs whose digest is not that of the last time, and take the others from the state."""
        history = history_of(self.reports)
        recorded = history.runs()[-RUNS:]
        prints = nights.fingerprints(history, [run.number for run in recorded])
        measured = {run.number for run in recorded[-PLOTTED:]}
        fresh = []
        for run in recorded:
            row = [run.run, run.started, run.ended, run.branch, run.exit_code, prints.get(run.number, ""), self._link(run.run)]
            self.digests[run.run] = _digest(row)
            if old.get(run.run, [""])[0] != self.digests[run.run] or not self.files.intact(f"runs/{_file(run.run)}"):
                fresh.append(run)
        found = site_data.summarise(history, fresh, measured)
        for run in recorded:
            if run.number in found:
                summary, self.bad[run.run] = found[run.number]
            else:
                summary = Summary(**old[run.run][1])
            if run.number not in measured:
                summary.metrics = {}
            self.runs.append(summary)

    def _link(self, run: str) -> str:
        """The page of a run in the reports directory, relative to a folder of the site; empty if it is gone."""
        page = self.reports / "runs" / run / "index.html"
        return quote(os.path.relpath(page, self.files.directory / "runs")) if page.is_file() else ""

    @cached_property
    def _months(self) -> dict[str, list[Summary]]:
        found: dict[str, list[Summary]] = {}
        for run in self.runs:
            # 2026-11
            month = run.night[:7] if re.fullmatch(r"\d{4}-\d\d", run.night[:7]) else "undated"
            found.setdefault(month, []).append(run)
        return dict(sorted(found.items(), reverse=True))

    @cached_property
    def _cells(self) -> list[str]:
        return sorted({cell for run in self.runs for cell in run.cells})

    # -- pages ----------------------------------------------------------------------------------------------------------

    @cached_property
    def _templates(self) -> Any:
        made = environment()
        made.globals |= {"file": _file, "words": _words, "tone": _tone, "named": site_data.named}
        return made

    def _page(self, name: str, source: str, render: Callable[[], str]) -> None:
        """Write a page, unless it was made from the same ``source``, a digest, and is intact."""
        self.sources[name] = source
        if self.old_sources.get(name) == source and self.files.intact(name):
            self.pages[name] = self.files.keep(name)
        else:
            self.pages[name] = self.files.write(name, render())

    def _render(self, template: str, **values: Any) -> str:
        return str(self._templates.get_template(template).render(**values))

    def _run(self, run: Summary) -> str:
        suites = sorted({suite for found in run.counts.values() for suite in found})
        return self._render(
            "site_run.html.j2", run=run, suites=suites, bad=self.bad[run.run][:_BAD], left=len(self.bad[run.run]) - _BAD,
            link=self._link(run.run), top="../", reason=lambda item: item.reason[:_REASON],
        )  # fmt: skip

    def _month(self, month: str, runs: Sequence[Summary]) -> str:
        cells = sorted({cell for run in runs for cell in run.cells})
        return self._render("site_month.html.j2", month=month, cells=cells, rows=_rows(runs, "../"), top="../")

    def _plotted(self, cell: str) -> list[Summary]:
        return [run for run in self.runs if cell in run.cells][-PLOTTED:]

    def _source_of_cell(self, cell: str) -> str:
        # A run loses its metrics when it gets too old for the plots.
        runs = [(self.digests[run.run], cell in run.metrics) for run in self._plotted(cell)]
        return _digest([runs, [issue.shown() for issue in self._issues if cell in issue.cells]])

    def _cell(self, cell: str) -> str:
        runs = self._plotted(cell)
        stages = {
            name.removeprefix("stage "): [run.metrics.get(cell, {}).get(name) for run in runs]
            for name in dict.fromkeys(name for run in runs for name in run.metrics.get(cell, {}) if name.startswith("stage "))
        }
        suites = sorted({suite for run in runs for suite in run.counts[cell]})
        return self._render(
            "site_cell.html.j2", cell=cell, runs=runs, top="../", suites=suites,
            strips={suite: Markup("".join([_square(run, "../", cell, suite) for run in runs])) for suite in suites},
            stages=Markup(plot.lines(stages, f"stages of the boot over {len(runs)} runs, in seconds")) if stages else "",
            plots=[(trend, Markup(plot.svg(trend))) for trend in _trends(cell, runs)],
            issues=[issue for issue in self._issues if cell in issue.cells],
        )  # fmt: skip

    @cached_property
    def _issues(self) -> list[site_data.Issue]:
        return site_data.issues(self.runs, site_data.recorded_since(paths.project() / "suites"))

    def _index(self) -> str:
        days = sorted({run.night for run in self.runs})[-NIGHTS:]
        shown = [run for run in self.runs if run.night in days]
        boots = [_trend(cell, "stage login", self.runs[-PLOTTED:]) for cell in self._cells]
        speed = _speed(self.runs[-PLOTTED:])
        return self._render(
            "site_index.html.j2",
            latest=_latest(self.runs),
            cells=sorted({cell for run in shown for cell in run.cells}),
            all_cells=self._cells,
            rows=_rows(shown, ""),
            nights=len(days),
            runs=[(run, self._link(run.run)[3:]) for run in reversed(self.runs[-LISTED:])],
            total=len(self.runs),
            plots=[(trend, Markup(plot.svg(trend))) for trend in boots if trend],
            speed=[(trend, Markup(plot.svg(trend))) for trend in speed],
            issues=self._issues,
            hosts=site_data.hosts(self.runs, _FAULTS),
            months=list(self._months),
            top="",
        )


def _latest(runs: Sequence[Summary]) -> list[Summary]:
    """The last run of each branch, newest first."""
    found: dict[str, Summary] = {}
    for run in runs:
        found.pop(run.branch, None)
        found[run.branch] = run
    return list(reversed(found.values()))


def _rows(runs: Iterable[Summary], top: str) -> list[tuple[str, str, dict[str, Markup]]]:
    """(night, branch, squares by cell) of a matrix, newest night first. Several runs of one night have several squares."""
    found: dict[tuple[str, str], dict[str, Markup]] = {}
    for run in runs:
        squares = found.setdefault((run.night, run.branch), {})
        for cell in run.cells:
            squares[cell] = Markup(squares.get(cell, "") + _square(run, top, cell))
    ordered = sorted(found.items(), key=lambda item: item[0][1])
    return [(*key, squares) for key, squares in sorted(ordered, key=lambda item: item[0][0], reverse=True)]


def _square(run: Summary, top: str, cell: str, suite: str = "") -> str:
    """The worst outcome of a cell in a run, as a square (HTML) that links to the run's page."""
    kind, letter, words = _look(tuple(run.total(cell, suite)))
    return f'<a class="sq {kind}" href="{top}runs/{_file(run.run)}" title="{_escaped(run.run)}: {words}">{letter}</a>'


@lru_cache(maxsize=4096)
def _look(counts: tuple[int, ...]) -> tuple[str, str, str]:
    """CSS class, letter and title of a square. Most squares are equal."""
    found = site_data.named(counts)
    kind, letter = SQUARES[next(each for each in WORST_FIRST if each in found)] if found else ("", "")
    return kind, letter, _words(found)


@lru_cache(maxsize=4096)
def _escaped(text: str) -> str:
    return escape(plain(text))


def _words(outcomes: Mapping[Outcome, int]) -> str:
    return ", ".join(f"{count} {outcome}" for outcome, count in outcomes.items()) or "no result"


def _tone(outcomes: Mapping[Outcome, int]) -> str:
    """The CSS class of a run or cell."""
    if FAILED in outcomes:
        return "bad"
    return "lost" if INFRASTRUCTURE in outcomes or HARNESS in outcomes else "good" if PASSED in outcomes else "none"


def _trend(cell: str, metric: str, runs: Iterable[Summary]) -> Trend | None:
    points = tuple((run.run, run.metrics[cell][metric]) for run in runs if metric in run.metrics.get(cell, {}))
    case, _, name = metric.rpartition(": ")
    return Trend(case or "boot to login", cell, name, points) if points else None


def _trends(cell: str, runs: Sequence[Summary]) -> list[Trend]:
    """Metrics of the cases in a cell: throughput first, then other metrics with many values."""
    names = {name for run in runs for name in run.metrics.get(cell, {}) if not name.startswith("stage ")}
    found = [trend for name in sorted(names) if (trend := _trend(cell, name, runs))]
    found.sort(key=lambda trend: (not more_is_better(trend.metric), -len(trend.points)))
    return found[:_PLOTS]


def _speed(runs: Sequence[Summary]) -> list[Trend]:
    """The throughput of the farm on each branch: judged cases per hour of a run."""
    found: dict[str, list[tuple[str, float]]] = {}
    for run in runs:
        seconds = _seconds(run.started, run.ended)
        judged = sum(count for outcome, count in run.outcomes().items() if outcome in (PASSED, FAILED, KNOWN))
        if seconds and judged:
            found.setdefault(run.branch, []).append((run.run, judged * 3600 / seconds))
    return [Trend("runs", branch or "without a branch", "judged cases per hour", tuple(points)) for branch, points in found.items()]


def _seconds(started: str, ended: str) -> float:
    try:
        return max(0.0, (datetime.fromisoformat(ended) - datetime.fromisoformat(started)).total_seconds())
    except ValueError:
        return 0.0


@lru_cache(maxsize=4096)
def _file(name: str) -> str:
    """The file name of the page of a run or cell. A name with other characters gets a digest, so that names stay different."""
    short = re.sub(r"[^A-Za-z0-9._-]", "_", name).lstrip(".")[:100]
    return f"{short}.html" if short == name else f"{short}-{_digest(name)[:8]}.html"


def _digest(value: object) -> str:
    return hashlib.sha256(json.dumps(value).encode()).hexdigest()


def _program() -> str:
    """A digest of our version, code and templates: another version renders all pages again."""
    own = Path(__file__).parent
    more = (own.parent / name for name in ("results/model.py", "safetext.py", "verdicts/drift.py"))
    sources = [*own.glob("*.py"), *own.parent.glob("history/*.py"), *more, *own.glob("templates/*.j2")]
    return _digest([_FORMAT, __version__, *(path.read_text() for path in sorted(sources))])
