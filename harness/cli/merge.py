# SPDX-License-Identifier: BSD-2-Clause
"""fxh merge: join the shards of a run, from several machines, into one run with one report."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from harness.cli import run_lookup


def register(app: typer.Typer) -> None:
    app.command()(merge)


def merge(
    runs: Annotated[list[Path], typer.Argument(help="Run directories (reports/runs/NAME), one per shard.")],
    reports: Annotated[
        Path | None, typer.Option("--reports", help="Write the joined run into this directory (default: reports/).")
    ] = None,
) -> None:
    """Join runs into one and write its report. Exit codes are those of `fxh run`; 4 also means that a shard is missing."""
    from harness.plugin.outcome import exit_code
    from harness.report import publish
    from harness.results import run_dir
    from harness.results.merge import merge as join
    from harness.results.model import OUTCOMES

    results = run_lookup.new_reports(reports)
    target = run_dir.new(results)
    found = join(runs, target, exit_code)
    publish(found.path, found.run)
    run_dir.latest(target)
    counts = ", ".join(f"{found.run.count(outcome)} {outcome}" for outcome in OUTCOMES if found.run.count(outcome))
    print(f"{len(found.run.cases)} cases of {len(runs)} runs: {counts or 'none'}")
    if found.differing:
        print(f"fxh: the runs differ in {', '.join(found.differing)}: check that they are shards of one run", file=sys.stderr)
    print(f"report: {target / 'index.html'}", file=sys.stderr)
    if found.missing:
        print(f"fxh: missing shards: {', '.join(found.missing)}", file=sys.stderr)
        print(
            "     hint: run the CI jobs of these shards again, and merge again: the new result replaces this one", file=sys.stderr
        )
    raise typer.Exit(run_lookup.with_delivery(target, found.run.exit_code or 0))
