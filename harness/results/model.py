# SPDX-License-Identifier: BSD-2-Clause
"""One case in one cell, and one run: what is kept of them, as values and as JSON.

A worker writes ``case.json`` into the case's own directory as soon as the case ends, so a run that is killed keeps all
that it learned.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import tempfile
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

SCHEMA = 1
_SETUP = "setup.jsonl"

PASSED, FAILED, SKIPPED, KNOWN = "passed", "failed", "skipped", "known"
INFRASTRUCTURE, HARNESS = "infrastructure", "harness"
# How the reason of a case begins that showed a known issue, and of one that should have shown it.
KNOWN_WORDS, GONE_WORDS = "known issue, ", "this passes, and is listed as a known issue, "
OUTCOMES = (PASSED, FAILED, KNOWN, SKIPPED, INFRASTRUCTURE, HARNESS)


@dataclass(frozen=True)
class Stamp:
    """A stage of a boot: ``at`` in seconds since the domain was unpaused."""

    name: str
    at: float


@dataclass(frozen=True)
class Boot:
    """One boot of one domain within a case; ``died`` in seconds since it was unpaused, or None.

    ``unpaused`` is the clock of the console's index (monotonic s) at zero; ``console`` names the log in the case's directory,
    in which this boot begins at ``offset`` (bytes); ``death`` is what was said of it.
    """

    domain: str
    stages: tuple[Stamp, ...] = ()
    died: float | None = None
    unpaused: float | None = None
    console: str = ""
    offset: int = 0
    death: str = ""


@dataclass(frozen=True)
class SetupStep:
    """Something that the harness built, downloaded or waited for during a run, which is no case's time.

    ``seconds`` it took; ``started`` in UTC; ``case`` is the node id of the case that had to wait for it, or "".
    """

    what: str
    seconds: float
    started: str = ""
    case: str = ""


@dataclass(frozen=True)
class CaseResult:
    """How a case ended. ``outcome`` is failed for the product alone; infrastructure and harness are no verdict on it.
    ``known`` is a failure that a known issue expects, whose line the reason begins with.

    ``identity`` is the death's, where there was one; ``files`` are names in the case's directory. ``phase`` is where it ended
    badly: setup, call or teardown. ``formerly`` are the keys the case had before it was renamed.

    ``seconds`` are the case's own. ``setup`` are those that it waited for what the harness built or downloaded (SetupStep).
    ``options`` are set in a joined run (`fxh merge`): those of the case's own run that differ from the joined run's, "" for one
    that was not given there.
    """

    nodeid: str
    suite: str
    case: str
    cell: str
    outcome: str
    seconds: float
    reason: str = ""
    identity: str = ""
    excerpt: str = ""
    boots: tuple[Boot, ...] = ()
    inputs: dict[str, str] = field(default_factory=dict)
    files: tuple[str, ...] = ()
    started: str = ""
    directory: str = ""
    title: str = ""
    metrics: dict[str, float] = field(default_factory=dict)
    phase: str = ""
    formerly: tuple[str, ...] = ()
    setup: float = 0.0
    options: dict[str, str] = field(default_factory=dict)

    @property
    def key(self) -> str:
        """What the case is called in every run and cell: ``boot/test_death::test_control_shutdown[halt]``."""
        path, _, name = self.nodeid.rpartition("::")
        _, _, parameters = name.removesuffix("]").partition("[")
        rest = re.sub(rf"(?:^|-){re.escape(self.cell)}(?=-|$)", "", parameters, count=1).lstrip("-") if self.cell else parameters
        return f"{self.suite}/{Path(path).stem}::{self.case}" + (f"[{rest}]" if rest else "")


@dataclass(frozen=True)
class RunResult:
    """One invocation. ``started`` and ``ended`` are UTC; ``ended`` is empty for a run that was killed.

    ``options`` are those of ``fxh run`` that choose inputs, by name: what a rerun with one of them swapped starts from.
    ``branch`` is the line of development that was tested, as the user calls it.
    """

    run: str
    started: str
    ended: str = ""
    command: str = ""
    inputs: dict[str, str] = field(default_factory=dict)
    exit_code: int | None = None
    cases: tuple[CaseResult, ...] = ()
    options: dict[str, str] = field(default_factory=dict)
    branch: str = ""
    setup: tuple[SetupStep, ...] = ()
    """In the order in which they ended."""

    def options_of(self, case: CaseResult) -> dict[str, str]:
        """The options of ``fxh run`` that the case ran with."""
        return {name: value for name, value in (self.options | case.options).items() if value}

    def count(self, outcome: str) -> int:
        return sum(case.outcome == outcome for case in self.cases)


def write_case(path: Path, case: CaseResult) -> None:
    """Write ``case.json`` into the directory ``path``, whole or not at all."""
    _write(path / "case.json", {"schema": SCHEMA, **asdict(case)})


def write_run(path: Path, run: RunResult) -> None:
    """Write ``run.json`` into the run's directory; cases and steps of setup have files of their own."""
    data = asdict(run)
    for name in ("cases", "setup"):
        data.pop(name)
    _write(path / "run.json", {"schema": SCHEMA, **data})


def add_setup(path: Path, *steps: SetupStep) -> None:
    """Append to ``setup.jsonl`` in the run's directory; several workers may do so at once."""
    with (path / _SETUP).open("ab", buffering=0) as file:
        for step in steps:
            file.write(json.dumps(asdict(step)).encode() + b"\n")


def read_run(path: Path) -> RunResult:
    """A run's directory as a value; cases whose file is damaged are left out. Raises OSError, ValueError."""
    data = json.loads((path / "run.json").read_text())
    cases = []
    for file in sorted((path / "cases").glob("*/case.json")):
        try:
            # Where the file is, whatever it says of that: files are read and copied by it.
            cases.append(_case(json.loads(file.read_text()) | {"directory": file.parent.name}))
        except (ValueError, KeyError, TypeError):
            continue
    cases.sort(key=lambda case: (case.suite, case.case, case.cell))
    return RunResult(**_known(RunResult, data) | {"cases": tuple(cases), "setup": _setup(path / _SETUP)})


def _setup(path: Path) -> tuple[SetupStep, ...]:
    """The steps in the file; a line that was cut short is left out, and a run of an older harness has no such file."""
    found = []
    with contextlib.suppress(OSError):
        for line in path.read_text(errors="replace").splitlines():
            with contextlib.suppress(ValueError, TypeError, AttributeError):
                found.append(SetupStep(**_known(SetupStep, json.loads(line))))
    return tuple(found)


def _case(data: dict[str, Any]) -> CaseResult:
    data["boots"] = tuple(
        Boot(**_known(Boot, boot) | {"stages": tuple(Stamp(**_known(Stamp, stamp)) for stamp in boot["stages"])})
        for boot in data.get("boots", ())
    )
    for name in ("files", "formerly"):
        data[name] = tuple(data.get(name, ()))
    return CaseResult(**_known(CaseResult, data))


def _known(kind: type, data: dict[str, Any]) -> dict[str, Any]:
    """Only the fields this version knows: a newer one may have written more."""
    names = {item.name for item in fields(kind)}
    return {key: value for key, value in data.items() if key in names}


def _write(path: Path, data: dict[str, Any]) -> None:
    write_text(path, json.dumps(data, indent=1, default=str))


def write_text(path: Path, text: str) -> None:
    """Replace the file ``path`` by ``text``, whole or not at all."""
    descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    with os.fdopen(descriptor, "w") as file:
        file.write(text)
    Path(temporary).chmod(0o644)
    Path(temporary).replace(path)
