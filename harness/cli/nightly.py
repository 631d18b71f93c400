# SPDX-License-Identifier: BSD-2-Clause
"""fxh nightly: update, build, run, report, prune; unattended."""

from __future__ import annotations

import platform
import sys
from pathlib import Path
from typing import Annotated

import typer


def register(app: typer.Typer) -> None:
    app.command()(nightly)


def nightly(
    reports: Annotated[Path | None, typer.Option("--reports", help="Where results go (default: reports/).")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the steps' commands and do nothing.")] = False,
) -> None:
    """A night as fxh.toml says in its table nightly. A JSON line a step; what fails besides the product is mailed as infrastructure.

    Exit code: 0 all well, 1 a verdict against the product, 4 the night itself failed, or another one is at work.
    """
    import shlex

    from harness import paths
    from harness.config import load
    from harness.nightly import mail, night
    from harness.nightly.plan import plan

    config = load().config
    where = (reports or paths.workspace() / "reports").absolute()
    steps = plan(config.nightly, config.mail, where)
    if dry_run:
        for step in steps:
            print(f"{step.name:<8} {shlex.join(step.argv)}")
        return
    done = night.run_steps(steps, where, config.nightly.step_hours, lambda line: print(line, flush=True))
    if done.failed:
        path = done.directory / "infrastructure.eml"
        message = mail.compose(done, config.mail, platform.node() or "localhost")
        print(f"fxh: the night failed itself: {path}{' is sent' if config.mail.send else ''}", file=sys.stderr)
        mail.deliver(message, config.mail, path)
    night.prune(where, config.run.keep_runs)
    raise typer.Exit(done.exit_code)
