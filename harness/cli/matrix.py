# SPDX-License-Identifier: BSD-2-Clause
"""fxh list and fxh check: what would run where, and whether the suites' own bookkeeping is in order. Nothing is booted."""

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
from harness.cli import completion, run_lookup
from harness.errors import ExitCode, HarnessError, UsageError

if TYPE_CHECKING:
    import pytest

    from harness.plugin import known
    from harness.plugin.cells import Cell


@dataclass(frozen=True)
class Entry:
    """One case in one cell. ``skip`` is why it would be skipped, ``issue`` the known issue it is expected to show."""

    suite: str
    case: str
    cell: Cell
    title: str
    skip: str = ""
    issue: str = ""


@dataclass(eq=False)
class Collector:
    """A pytest plugin that keeps what was collected."""

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
            issue = None if skip else known.find(self.issues, case, cell)
            self.entries.append(Entry(suite, case, cell, title(item), skip, issue.line if issue else ""))


def collect(options: list[str]) -> tuple[list[Entry], tuple[known.KnownIssue, ...]]:
    """All cases of the suites in the cells that ``options`` ask for. Raises UsageError, HarnessError."""
    import pytest

    from harness.plugin import known

    suites = paths.project() / "suites"
    issues = known.load(suites)
    collector = Collector(issues)
    with tempfile.TemporaryDirectory() as scratch:
        run = Path(scratch) / "runs" / "list"
        argv = [
            str(suites),
            *run_lookup.pytest_root(paths.project(), paths.project()),
            "--collect-only",
            "-q",
            "-p",
            "no:cacheprovider",
        ]
        said = io.StringIO()
        with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
            status = pytest.main([*argv, "--reports", scratch, "--fxh-run", str(run), *options], plugins=[collector])
    if status == pytest.ExitCode.USAGE_ERROR:
        raise UsageError(said.getvalue().strip().removeprefix("ERROR: "))
    if status == pytest.ExitCode.INTERNAL_ERROR:
        raise HarnessError(f"pytest stopped while it collected the suites:\n{said.getvalue()[-2000:]}")
    if collector.errors:
        raise HarnessError("the suites cannot be collected:\n" + "\n".join(collector.errors))
    return collector.entries, issues


def register(app: typer.Typer) -> None:
    app.command("list")(list_)
    app.command()(check)


def list_(
    suites: Annotated[
        list[str] | None, typer.Argument(help="Suites by name (default: all).", autocompletion=completion.suites)
    ] = None,
    guest: Annotated[
        str, typer.Option("--guest", help="control, freebsd (by commas).", autocompletion=completion.one_of("control", "freebsd"))
    ] = "",
    guest_type: Annotated[
        str,
        typer.Option("--type", help="pv, pvh, hvm (by commas).", autocompletion=completion.one_of("pv", "pvh", "hvm", "pvshim")),
    ] = "",
    firmware: Annotated[
        str,
        typer.Option(
            "--firmware", help="Firmwares of HVM guests: bios, uefi (by commas).", autocompletion=completion.one_of("bios", "uefi")
        ),
    ] = "",
    xen: Annotated[str, typer.Option("--xen", help="Xen versions of the lab (by commas).", autocompletion=completion.xens)] = "",
    kernel: Annotated[Path | None, typer.Option("--kernel", help="A FreeBSD kernel, instead of the disk's own.")] = None,
    disk: Annotated[
        Path | None, typer.Option("--disk", help="A FreeBSD disk image: raw or qcow2, perhaps in .xz; it is only read.")
    ] = None,
    image: Annotated[
        str,
        typer.Option(
            "--image", help="A FreeBSD image of the store, or an exported one's directory.", autocompletion=completion.images
        ),
    ] = "",
    root: Annotated[str, typer.Option("--root", help="The root device, where a disk has more than one.")] = "",
    everywhere: Annotated[bool, typer.Option("--all", help="All guests and types that there could be.")] = False,
    cases: Annotated[bool, typer.Option("--cases", help="Each case with why it is skipped or known to fail.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="For programs.")] = False,
) -> None:
    """What would run: suites by cells, with what is skipped and why, and known issues. Boots nothing."""
    if disk is not None and kernel is None and not image:
        run_lookup.disk(disk, root)
    options = ["--fxh-everywhere"] if everywhere else []
    asked = {
        "guest": guest, "type": guest_type, "firmware": firmware, "xen": xen, "kernel": kernel, "disk": disk, "image": image,
        "root": root,
    }  # fmt: skip
    for name, value in asked.items():
        if value:
            options += [f"--{name}", str(value.absolute() if isinstance(value, Path) else value)]
    found, _ = collect(options)
    found = [entry for entry in found if not suites or entry.suite in suites]
    if not found:
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
    """A line for each suite and cell; below it, with ``cases``, each case."""
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
    """Check that known issues fit cases and are not overdue, and that docs/suites.md and docs/test-plan.md are up to date.

    Exit code 1 if not.
    """
    from harness.cli import tested, testplan
    from harness.plugin import known

    if test_plan is not None:
        testplan.write(test_plan)
        return

    entries, issues = collect(["--fxh-everywhere"])
    stale = known.stale(issues, [(entry.case, entry.cell) for entry in entries], datetime.datetime.now(datetime.UTC).date())
    wrong = [*(f"{known.FILE}: {line}" for line in stale), *tested.stale(), *testplan.stale()]
    for line in wrong:
        print(line)
    if wrong:
        raise typer.Exit(ExitCode.PRODUCT)
    print(f"{len(issues)} known issues, {len({entry.case for entry in entries})} cases: in order")
