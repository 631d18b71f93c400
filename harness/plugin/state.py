# SPDX-License-Identifier: BSD-2-Clause
"""What the plugin keeps on pytest's own objects."""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from harness.plugin.case_context import CaseContext
from harness.plugin.options import Options
from harness.plugin.outcome import Finding
from harness.plugin.setuplog import SetupLog
from harness.plugin.worker_env import WorkerEnvironment


@dataclass
class Progress:
    """A case on its way through setup, call and teardown."""

    begun: float
    started: str
    findings: list[tuple[str, Finding]] = field(default_factory=list)
    seconds: float = 0.0
    setup: float = 0.0
    """Seconds that went into the run's setup meanwhile; ``seconds`` is without them."""
    lost: str = ""
    """Why the host was lost on which it ran first."""


OPTIONS = pytest.StashKey[Options]()
RUN = pytest.StashKey[Path]()
RIG = pytest.StashKey[WorkerEnvironment]()
SETUP = pytest.StashKey[SetupLog]()
CASE = pytest.StashKey[CaseContext]()
PROGRESS = pytest.StashKey[Progress]()


def case_directory(config: pytest.Config, nodeid: str) -> Path:
    """The case's own directory within the run, made when first asked for."""
    name = re.sub(r"[^A-Za-z0-9.]+", "-", nodeid.rpartition("/")[2]).strip("-")
    tail = hashlib.sha256(nodeid.encode()).hexdigest()[:6]
    path = config.stash[RUN] / "cases" / f"{name[:80]}-{tail}"
    path.mkdir(parents=True, exist_ok=True)
    return path
