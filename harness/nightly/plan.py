# SPDX-License-Identifier: BSD-2-Clause
"""A night as a list of steps: commands, and what the exit code of each means for the night."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path

from harness.config.schema import MailConfig, NightlyConfig
from harness.errors import ExitCode, UsageError

_SCRIPT = Path(sys.executable).parent / "fxh"
FXH = (str(_SCRIPT),) if _SCRIPT.is_file() else (sys.executable, "-m", "harness.cli")


@dataclass(frozen=True)
class Step:
    """``verdicts`` are exit codes by which the step says something about the product; any other but 0 is its own failure.

    ``needed``: when it fails the rest of the night makes no sense. ``always``: it is done even then.
    """

    name: str
    argv: tuple[str, ...]
    verdicts: tuple[int, ...] = ()
    needed: bool = False
    echoes: str = ""
    """A step before, whose exit code this one ends with when it did its own work."""
    always: bool = False


def plan(config: NightlyConfig, mail: MailConfig, reports: Path) -> tuple[Step, ...]:
    """The steps that are configured, in their order. Raises UsageError."""
    if config.source and not Path(config.source).is_dir():
        raise UsageError(f"nightly.source {config.source}: no such directory", hint="check the tree out there first")

    def words(given: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(word.replace("{source}", config.source) for word in given)

    steps = []
    update = config.update or (("git", "-C", "{source}", "pull", "--ff-only", "--quiet") if config.source else ())
    if update:
        steps.append(Step("update", words(update), needed=True))
    if config.build:
        steps.append(Step("build", (*FXH, "image", "build", *words(config.build)), needed=True))
    run = (*FXH, "run", *words(config.run), "--reports", str(reports))
    steps.append(Step("run", run, verdicts=(ExitCode.PRODUCT,)))
    report = (*FXH, "report", *words(config.report), *_post(mail), "--reports", str(reports))
    steps.append(Step("report", report, echoes="run"))
    steps.append(Step("prune", (*FXH, "clean", "--yes"), always=True))
    return tuple(steps)


def _post(mail: MailConfig) -> tuple[str, ...]:
    """Who gets the verdict, as options of `fxh report`, which takes server and login from the same configuration."""
    if not mail.to:
        return ()
    return ("--to", ", ".join(mail.to), *(("--send",) if mail.send else ()))
