# SPDX-License-Identifier: BSD-2-Clause
"""fxh nightly: update, build, run, report and prune, unattended."""

from __future__ import annotations

import platform
import sys
from pathlib import Path
from typing import Annotated

import typer


def register(app: typer.Typer) -> None:
    app.command()(nightly)


def nightly(
    reports: Annotated[
        Path | None, typer.Option("--reports", help="Write results into this directory (default: reports/).")
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the commands of the steps and run nothing.")] = False,
) -> None:
    """Run the steps of [nightly] in fxh.toml, with one line of JSON per step. Failures other than the product's are mailed.

    Exit codes: 0 success, 1 product failure, 4 a step failed or another nightly job is running.
    """
    import shlex

    from harness import mailer, paths
    from harness.config import load
    from harness.nightly import mail, night
    from harness.nightly.plan import plan, to_prepare

    config = load().config
    if config.mail.send:
        mailer.check(config.mail)  # not only after the hours of a run
    where = (reports or paths.workspace() / "reports").absolute()
    steps = plan(config.nightly, config.mail, where, to_prepare(config))
    if dry_run:
        for step in steps:
            print(f"{step.name:<8} {shlex.join(step.argv)}")
        return
    done = night.run_steps(steps, where, config.nightly.step_hours, lambda line: print(line, flush=True))
    if done.failed:
        path = done.directory / "infrastructure.eml"
        message = mail.compose(done, config.mail, platform.node() or "localhost")
        print(f"fxh: the nightly job failed: {path}{' is sent' if config.mail.send else ''}", file=sys.stderr)
        mailer.deliver(message, config.mail, path)
    night.prune(where, config.run.keep_runs)
    raise typer.Exit(done.exit_code)
