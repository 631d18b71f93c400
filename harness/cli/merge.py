# SPDX-License-Identifier: BSD-2-Clause
"""fxh merge: the shards of a run, from several machines, as one run with one page."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from harness.cli import run_lookup
from harness.errors import ExitCode


def register(app: typer.Typer) -> None:
    app.command()(merge)


def merge(
    runs: Annotated[list[Path], typer.Argument(help="Directories of runs (reports/runs/NAME), one for each shard.")],
    reports: Annotated[Path | None, typer.Option("--reports", help="Where the joined run goes (default: reports/).")] = None,
) -> None:
    """Join runs into one and write its page. Exit code as `fxh run`'s; 4 when a shard is missing."""
    from harness.plugin.outcome import exit_code
    from harness.report import publish
    from harness.results import run_dir
    from harness.results.merge import merge as join
    from harness.results.model import OUTCOMES

    where = run_lookup.reports(reports)
    target = run_dir.new(where)
    found = join(runs, target, exit_code)
    publish(found.path, found.run)
    run_dir.latest(target)
    counts = ", ".join(f"{found.run.count(outcome)} {outcome}" for outcome in OUTCOMES if found.run.count(outcome))
    print(f"{len(found.run.cases)} cases of {len(runs)} runs: {counts or 'none'}")
    if found.differing:
        print(f"fxh: the runs differ in {', '.join(found.differing)}: are they of one night?", file=sys.stderr)
    print(f"report: {target / 'index.html'}", file=sys.stderr)
    if found.missing:
        print(f"fxh: missing shards: {', '.join(found.missing)}", file=sys.stderr)
        if found.run.exit_code in (ExitCode.OK, ExitCode.NOTHING_SELECTED):
            raise typer.Exit(ExitCode.INFRASTRUCTURE)
    raise typer.Exit(found.run.exit_code or 0)
