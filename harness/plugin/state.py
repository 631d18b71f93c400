# SPDX-License-Identifier: BSD-2-Clause
"""The plugin's state on pytest's Config and Item objects."""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from harness.plugin.case_context import CaseContext
from harness.plugin.options import Options
from harness.plugin.outcome import PhaseResult
from harness.plugin.setuplog import SetupLog
from harness.plugin.worker_env import WorkerEnvironment


@dataclass
class Attempt:
    """One attempt to run a case. A case whose host is lost has two.

    It exists from the begin of the setup on. The :class:`CaseContext` exists only if the setup reaches the fixture ``case``.
    """

    begun: float
    """Monotonic seconds."""
    started: str
    """UTC."""
    results: list[tuple[str, PhaseResult]] = field(default_factory=list)
    """The name and the result of each phase that did not pass: setup, call or teardown."""
    seconds: float = 0.0
    """The duration of its phases so far, without ``setup``."""
    setup: float = 0.0
    """Seconds of the run's setup during these phases."""
    paused: str = ""
    """Where the case was paused for a person: before-call, on-failure, or empty."""
    pause_seconds: float = 0.0
    """Duration of a pause within the present phase."""
    lost: str = ""
    """Why the first attempt lost the host, if this is the second one."""


# On Config.
OPTIONS = pytest.StashKey[Options]()
RUN = pytest.StashKey[Path]()
WORKER_ENV = pytest.StashKey[WorkerEnvironment]()
SETUP = pytest.StashKey[SetupLog]()
KERNEL_IS_MISSING = pytest.StashKey[bool]()
"""The controller's: whether the control guest's kernel was not built yet when the run began."""
# On Item.
CASE = pytest.StashKey[CaseContext]()
ATTEMPT = pytest.StashKey[Attempt]()
PAUSE = pytest.StashKey[str]()
"""Where ``--pause`` stops the case."""


def case_directory(config: pytest.Config, nodeid: str) -> Path:
    """The directory of a case in the run directory, created on demand."""
    name = re.sub(r"[^A-Za-z0-9.]+", "-", nodeid.rpartition("/")[2]).strip("-")
    tail = hashlib.sha256(nodeid.encode()).hexdigest()[:6]
    path = config.stash[RUN] / "cases" / f"{name[:80]}-{tail}"
    path.mkdir(parents=True, exist_ok=True)
    return path
