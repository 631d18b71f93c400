# SPDX-License-Identifier: BSD-2-Clause
"""fxh list and fxh check: list the cases of the suites, and check their known issues. Both boot nothing."""

from __future__ import annotations

import contextlib
import datetime
import io
import json
import tempfile
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from harness import paths
from harness.cli import completion, run_lookup, run_options
from harness.cli.run_options import Given
from harness.errors import ExitCode, HarnessError, UsageError

if TYPE_CHECKING:
    import pytest

    from harness.plugin import known
    from harness.plugin.cells import Cell


@dataclass(frozen=True)
class Entry:
    """One case in one cell. ``skip`` is the reason for a skip, ``issue`` the known issues that cover the case."""

    suite: str
    case: str
    cell: Cell
    title: str
    skip: str = ""
    issue: str = ""


@dataclass(eq=False)
class Collector:
    """A pytest plugin that records the collected cases."""

    issues: tuple[known.KnownIssue, ...]
    entries: list[Entry] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        if report.failed:
            self.errors.append(str(report.longrepr))

    def pytest_collection_finish(self, session: pytest.Session) -> None:
        from harness.plugin import known
        from harness.plugin.cells import Cell
        from harness.plugin.selection import title

        for item in session.items:
            callspec = getattr(item, "callspec", None)
            cell = callspec.params.get("cell") if callspec is not None else None
            if not isinstance(cell, Cell):
                continue
            suite, function = item.path.parent.name, item.name.partition("[")[0]
            case = known.case_id(suite, function, callspec.id if callspec else "", cell)
            skip = next((str(mark.kwargs.get("reason", "")) for mark in item.iter_markers("skip")), "")
            issues = () if skip else known.covering(self.issues, case, cell)
            self.entries.append(Entry(suite, case, cell, title(item), skip, "; ".join(issue.line for issue in issues)))


def collect(given: Given, *, every_cell: bool = False) -> tuple[list[Entry], tuple[known.KnownIssue, ...]]:
    """All cases of the suites in the cells of the run options ``given``, or in all possible cells, and the known issues.

    Raises UsageError for invalid options, HarnessError if a suite cannot be collected.
    """
    import pytest

    from harness.plugin import known
    from harness.plugin.options import Invocation

    suites = paths.project() / "suites"
    issues = known.load(suites)
    collector = Collector(issues)
    with tempfile.TemporaryDirectory() as scratch:
        root = run_lookup.pytest_root(paths.project(), paths.project())
        argv = [str(suites), *root, "--collect-only", "-q", "-p", "no:cacheprovider"]
        invocation = Invocation(given | {"reports": scratch}, Path(scratch) / "runs" / "list", every_cell=every_cell)
        output = io.StringIO()
        with contextlib.redirect_stdout(output), contextlib.redirect_stderr(output):
            status = pytest.main(argv, plugins=[collector, invocation])
    if status == pytest.ExitCode.USAGE_ERROR:
        raise UsageError(output.getvalue().strip().removeprefix("ERROR: "))
    if status == pytest.ExitCode.INTERNAL_ERROR:
        raise HarnessError(f"pytest failed while it collected the suites:\n{output.getvalue()[-2000:]}")
    if collector.errors:
        raise HarnessError("the suites cannot be collected:\n" + "\n".join(collector.errors))
    return collector.entries, issues


def register(app: typer.Typer) -> None:
    app.command("list")(list_)
    app.command()(check)


@run_options.takes("guest", "type", "firmware", "xen", "kernel", "disk", "image", "root")
def list_(
    *,
    suites: Annotated[
        list[str] | None, typer.Argument(help="Suites by name (default: all suites).", autocompletion=completion.suites)
    ] = None,
    given: Given,
    everywhere: Annotated[bool, typer.Option("--all", help="List all possible guests and guest types.")] = False,
    cases: Annotated[bool, typer.Option("--cases", help="List each case, with the reason for a skip and its known issue.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """List the cases by suite and cell, with skips and known issues; boot nothing."""
    if "disk" in given and not given.keys() & {"kernel", "image"}:
        run_lookup.disk(given["disk"], given.get("root", ""))
    if wrong := [suite for suite in suites or () if suite not in paths.suite_names()]:
        raise run_lookup.no_suite(wrong[0])
    found, _ = collect(given, every_cell=everywhere)
    found = [entry for entry in found if not suites or entry.suite in suites]
    if not found:
        typer.echo("no case runs on these guests; fxh list --all shows the guests and guest types of each suite", err=True)
        raise typer.Exit(ExitCode.NOTHING_SELECTED)
    if as_json:
        rows = [
            {"suite": e.suite, "case": e.case, "cell": str(e.cell), "title": e.title, "skip": e.skip, "known issue": e.issue}
            for e in found
        ]
        print(json.dumps(rows, indent=1))
    else:
        print("\n".join(table(found, cases=cases)))


def table(entries: list[Entry], *, cases: bool = False) -> list[str]:
    """One line per suite and cell, and below it one per case if ``cases``."""
    width = max(len(str(entry.cell)) for entry in entries)
    lines = []
    for suite, cell in sorted({(entry.suite, entry.cell) for entry in entries}, key=str):
        here = [entry for entry in entries if (entry.suite, entry.cell) == (suite, cell)]
        skips = Counter(entry.skip.partition("; elsewhere")[0] for entry in here if entry.skip)
        issues = sum(bool(entry.issue) for entry in here)
        runs = len(here) - sum(skips.values())
        why = ", ".join(f"{count} {reason}" for reason, count in skips.most_common())
        lines.append(f"{suite:<12} {cell!s:<{width}} {runs:>3} run {issues:>2} known  {'skipped: ' + why if why else ''}".rstrip())
        for entry in here if cases else ():
            note = f"skipped: {entry.skip}" if entry.skip else f"KNOWN: {entry.issue}" if entry.issue else entry.title
            lines.append(f"    {entry.case.partition('/')[2]:<48} {note}")
    return lines


def check(
    test_plan: Annotated[Path | None, typer.Option("--test-plan", help="Only write docs/test-plan.md to this file.")] = None,
) -> None:
    """Check that each known issue fits a case and is not due for review, and that generated pages are up to date.

    The pages are the matrix in docs/suites.md, and docs/test-plan.md. Exit code 1 if a check fails.
    """
    from harness.cli import tested, testplan
    from harness.plugin import known

    if test_plan is not None:
        testplan.write(test_plan)
        return
    entries, issues = collect({}, every_cell=True)
    stale = known.stale(issues, [(entry.case, entry.cell) for entry in entries], datetime.datetime.now(datetime.UTC).date())
    wrong = [*(f"{known.FILE}: {line}" for line in stale), *tested.stale(), *testplan.stale()]
    for line in wrong:
        print(line)
    if wrong:
        raise typer.Exit(ExitCode.PRODUCT)
    print(f"{len(issues)} known issues, {len({entry.case for entry in entries})} cases: in order")
