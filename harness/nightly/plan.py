# SPDX-License-Identifier: BSD-2-Clause
"""The steps of a nightly job: commands, and the meaning of their exit codes."""

from __future__ import annotations

import secrets
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

from harness.config.schema import Config, MailConfig, NightlyConfig
from harness.errors import ExitCode, UsageError

_SCRIPT = Path(sys.executable).parent / "fxh"
FXH = (str(_SCRIPT),) if _SCRIPT.is_file() else (sys.executable, "-m", "harness.cli")


@dataclass(frozen=True)
class NightlyStep:
    """A command of a nightly job. An exit code that is neither 0, nor in ``verdicts``, nor repeated, is a failure of the step."""

    name: str
    argv: tuple[str, ...]
    verdicts: tuple[int, ...] = ()
    """Exit codes that mean a verdict against the product."""
    needed: bool = False
    """If this step fails, skip the steps after it."""
    repeats: str = ""
    """An earlier step. This step exits with the same code if it succeeds."""
    always: bool = False
    """Run this step even if a needed step failed."""


def plan(config: NightlyConfig, mail: MailConfig, reports: Path, prepared: Sequence[str] = ()) -> tuple[NightlyStep, ...]:
    """The configured steps, in their order. ``prepared`` are the hosts to prepare.

    Raises UsageError if ``nightly.source`` does not exist.
    """
    if config.source and not Path(config.source).is_dir():
        raise UsageError(f"nightly.source {config.source}: no such directory", hint="check out the source tree there")

    def expand(words: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(word.replace("{source}", config.source) for word in words)

    steps = []
    update = config.update or (("git", "-C", "{source}", "pull", "--ff-only", "--quiet") if config.source else ())
    if update:
        steps.append(NightlyStep("update", expand(update), needed=True))
    if config.build:
        steps.append(NightlyStep("build", (*FXH, "image", "build", *expand(config.build)), needed=True))
    if prepared:
        # Not needed: a host whose preparation fails is set aside, and the others serve the run.
        steps.append(NightlyStep("prepare", (*FXH, "prepare", ",".join(prepared))))
    run = (*FXH, "run", *expand(config.run), *_walk_options(config), "--reports", str(reports))
    steps.append(NightlyStep("run", run, verdicts=(ExitCode.PRODUCT,)))
    report = (*FXH, "report", *expand(config.report), *_mail_options(mail), "--reports", str(reports))
    steps.append(NightlyStep("report", report, repeats="run"))
    steps.append(NightlyStep("prune", (*FXH, "clean", "--yes"), always=True))
    return tuple(steps)


def to_prepare(config: Config) -> tuple[str, ...]:
    """The names of the hosts of the nightly run that have a command ``prepare``."""
    words, option = config.run.host, "--xen-host"
    for word, value in pairwise((*config.nightly.run, "")):
        words = value if word == option else word.partition("=")[2] if word.startswith(f"{option}=") else words
    chosen = {word.strip() for word in words.split(",")}
    return tuple(
        host.name for host in config.hosts.values() if host.prepare and chosen & {host.name, *(f"tag:{tag}" for tag in host.tags)}
    )


def _walk_options(config: NightlyConfig) -> tuple[str, ...]:
    """The random walk with a new seed, which the run's command and walk.json record. ``nightly.run`` may name a walk itself."""
    if not config.walk or any(word.partition("=")[0] in ("--walk", "--walk-replay") for word in config.run):
        return ()
    return ("--walk", config.walk, "--walk-seed", str(secrets.randbelow(1 << 31) + 1))


def _mail_options(mail: MailConfig) -> tuple[str, ...]:
    """The recipients as options of ``fxh report``, which reads the server and the login from the same configuration."""
    if not mail.to:
        return ()
    return ("--to", ", ".join(mail.to), *(("--send",) if mail.send else ()))
