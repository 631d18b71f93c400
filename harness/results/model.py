# SPDX-License-Identifier: BSD-2-Clause
"""The results of a case and of a run, as values and as JSON files.

A worker writes ``case.json`` into the case's directory as soon as the case ends, so a killed run keeps the results of its
finished cases. docs/schema/case-2.json describes the file.
"""

from __future__ import annotations

import contextlib
import json
import os
import tempfile
from dataclasses import asdict, dataclass, field, fields, replace
from enum import StrEnum
from pathlib import Path
from typing import Any

from harness.results import schema1
from harness.results.where import NOWHERE, Where, own_parameters

SCHEMA = 2
"""The schema that this harness writes. It also reads schema 1 (harness.results.schema1)."""
_SETUP = "setup.jsonl"
DUMP_SUFFIX = ".vmcore.gz"
"""Ends the name of a kernel dump, which is not text."""
LOST = "lost"
"""The subdirectory of a case for the files of an attempt that lost its host."""


class Outcome(StrEnum):
    """How a case ended. Only ``failed`` is a failure of the product; the last two say nothing about it."""

    PASSED = "passed"
    FAILED = "failed"
    KNOWN = "known"
    """It failed as a known issue says."""
    SKIPPED = "skipped"
    INFRASTRUCTURE = "infrastructure"
    HARNESS = "harness"
    """A bug of the harness."""


PASSED, FAILED, KNOWN, SKIPPED = Outcome.PASSED, Outcome.FAILED, Outcome.KNOWN, Outcome.SKIPPED
INFRASTRUCTURE, HARNESS = Outcome.INFRASTRUCTURE, Outcome.HARNESS
OUTCOMES = tuple(Outcome)
WORST_FIRST = (FAILED, HARNESS, INFRASTRUCTURE, KNOWN, PASSED, SKIPPED)


@dataclass(frozen=True)
class KnownIssueMatch:
    """The entry of suites/known_issues.toml that covers a case or a complaint."""

    bug: str
    why: str = ""
    gone: bool = False
    """The case passed although the entry expects a failure."""

    @property
    def line(self) -> str:
        """Bug and description in one line."""
        return ": ".join(filter(None, (self.bug, self.why)))


@dataclass(frozen=True)
class DeathRecord:
    """The death of a guest (harness.console.deaths). Equal deaths have the same ``identity``."""

    kind: str
    identity: str
    message: str


@dataclass(frozen=True)
class ComplaintRecord:
    """A message that reports a problem without ending the guest (harness.console.complaints)."""

    kind: str
    source: str
    """guest, xen or dom0."""
    message: str
    identity: str
    detail: tuple[str, ...] = ()
    count: int = 1
    known_issue: KnownIssueMatch | None = None
    """The entry of suites/known_issues.toml that covers it."""


@dataclass(frozen=True)
class Stamp:
    """A stage of a boot: ``at`` in seconds since the domain was unpaused."""

    name: str
    at: float


@dataclass(frozen=True)
class Boot:
    """One boot of one domain within a case."""

    domain: str
    stages: tuple[Stamp, ...] = ()
    died: float | None = None
    """Seconds from unpausing the domain to its death."""
    unpaused: float | None = None
    """When the domain was unpaused, on the clock of the console's index (monotonic s)."""
    console: str = ""
    """Name of the console log in the case's directory."""
    offset: int = 0
    """Where this boot begins in the console log, in bytes."""
    death: str = ""
    """The message of the death."""


@dataclass(frozen=True)
class SetupStep:
    """A build, download or wait of the harness during a run. Its time is not part of a case's time."""

    what: str
    seconds: float
    started: str = ""
    """UTC."""
    case: str = ""
    """Node id of the case that waited for the step, or empty."""


@dataclass(frozen=True)
class CaseResult:
    """The result of one case in one cell."""

    nodeid: str
    suite: str
    case: str
    cell: str
    """The name of the cell, ``str(where)``. The history finds earlier results by it."""
    outcome: Outcome
    seconds: float
    """Time of the case without ``setup``."""
    reason: str = ""
    identity: str = ""
    """Identity of the death, or empty."""
    excerpt: str = ""
    boots: tuple[Boot, ...] = ()
    inputs: dict[str, str] = field(default_factory=dict)
    files: tuple[str, ...] = ()
    """Names in the case's directory."""
    started: str = ""
    """UTC."""
    directory: str = ""
    title: str = ""
    metrics: dict[str, float] = field(default_factory=dict)
    phase: str = ""
    """Where the case ended badly: setup, call or teardown."""
    formerly: tuple[str, ...] = ()
    """Keys of the case before it was renamed."""
    setup: float = 0.0
    """Seconds that the case waited for setup steps."""
    options: dict[str, str] = field(default_factory=dict)
    """For a case of a merged run (`fxh merge`): options of its own run that differ from the merged run's.

    An option that its own run did not have is empty.
    """
    where: Where = NOWHERE
    known_issue: KnownIssueMatch | None = None
    """Set for the outcome ``known``, and for a case that failed because it passed despite a known issue."""
    death: DeathRecord | None = None
    complaints: tuple[ComplaintRecord, ...] | None = None
    """One per identity. None: no console was searched."""
    parameters: str | None = None
    """Parameters of the case without its cell (``halt``). None: the node id has them (schema 1)."""

    paused: str = ""
    """Where ``fxh run --pause`` stopped the case: before-call or on-failure. Such a result is not judged."""

    @property
    def key(self) -> str:
        """The case's name in all runs and cells: ``boot/test_death::test_control_shutdown[halt]``."""
        path = self.nodeid.rpartition("::")[0]
        own = own_parameters(self.nodeid, self.cell) if self.parameters is None else self.parameters
        return f"{self.suite}/{Path(path).stem}::{self.case}" + (f"[{own}]" if own else "")


@dataclass(frozen=True)
class RunResult:
    """The result of one invocation of ``fxh run``."""

    run: str
    started: str
    """UTC."""
    ended: str = ""
    """UTC; empty for a run that was killed."""
    command: str = ""
    inputs: dict[str, str] = field(default_factory=dict)
    exit_code: int | None = None
    cases: tuple[CaseResult, ...] = ()
    options: dict[str, str] = field(default_factory=dict)
    """Options of ``fxh run`` that choose inputs, by name. A rerun starts from them."""
    branch: str = ""
    """The branch under test, as given by the user."""
    setup: tuple[SetupStep, ...] = ()
    """In the order in which they ended."""
    parts: tuple[str, ...] = ()
    """Of a merged run: the names of the runs of its shards."""

    def options_of(self, case: CaseResult) -> dict[str, str]:
        """The options of ``fxh run`` that the case ran with."""
        return {name: value for name, value in (self.options | case.options).items() if value}

    def count(self, outcome: str) -> int:
        return sum(case.outcome == outcome for case in self.cases)


def write_case(path: Path, case: CaseResult) -> None:
    """Write ``case.json`` atomically into the directory ``path``."""
    _write(path / "case.json", {"schema": SCHEMA, **asdict(case)})


def write_run(path: Path, run: RunResult) -> None:
    """Write ``run.json`` atomically into the run's directory. Cases and setup steps have their own files."""
    data = asdict(run)
    for name in ("cases", "setup"):
        data.pop(name)
    _write(path / "run.json", {"schema": SCHEMA, **data})


def add_setup(path: Path, *steps: SetupStep) -> None:
    """Append to ``setup.jsonl`` in the run's directory. Several workers may append at the same time."""
    with (path / _SETUP).open("ab", buffering=0) as file:
        for step in steps:
            file.write(json.dumps(asdict(step)).encode() + b"\n")


def read_run(path: Path) -> RunResult:
    """Read a run's directory, of schema 1 or 2. Leaves out cases whose file is damaged.

    Raises OSError, and ValueError for a damaged ``run.json`` or a newer schema.
    """
    data = json.loads((path / "run.json").read_text())
    if (schema := int(data.get("schema", 1))) > SCHEMA:
        raise ValueError(f"run.json has schema {schema}; this harness reads up to {SCHEMA}")
    cases = []
    for file in sorted((path / "cases").glob("*/case.json")):
        try:
            # The file may come from another machine: files are read and copied by its real directory.
            cases.append(case_from_json(json.loads(file.read_text()) | {"directory": file.parent.name}))
        except (ValueError, KeyError, TypeError, AttributeError):
            continue
    cases.sort(key=lambda case: (case.suite, case.case, case.cell))
    made = {"cases": tuple(cases), "setup": _setup(path / _SETUP), "parts": tuple(data.get("parts", ()))}
    return RunResult(**_fields_of(RunResult, data) | made)


def case_from_json(data: dict[str, Any]) -> CaseResult:
    """A case from the content of ``case.json``, schema 1 or 2. Raises ValueError, KeyError or TypeError for other content."""
    found = _fields_of(CaseResult, data)
    found["outcome"] = Outcome(data["outcome"])
    found["boots"] = tuple(
        Boot(**_fields_of(Boot, boot) | {"stages": tuple(Stamp(**_fields_of(Stamp, stamp)) for stamp in boot["stages"])})
        for boot in data.get("boots", ())
    )
    for name in ("files", "formerly"):
        found[name] = tuple(data.get(name, ()))
    if (complaints := data.get("complaints")) is not None:
        found["complaints"] = tuple(map(_complaint, complaints))
    if data.get("schema", 1) == 1:
        return with_schema1_fields(CaseResult(**found))
    issue, death = data["known_issue"], data["death"]
    return CaseResult(**found | {
        "where": Where(**_fields_of(Where, data["where"])),
        "known_issue": KnownIssueMatch(**_fields_of(KnownIssueMatch, issue)) if issue else None,
        "death": DeathRecord(**_fields_of(DeathRecord, death)) if death else None,
    })  # fmt: skip


def _complaint(data: dict[str, Any]) -> ComplaintRecord:
    issue = data.get("known_issue")
    known = KnownIssueMatch(**_fields_of(KnownIssueMatch, issue)) if issue else None
    return ComplaintRecord(**_fields_of(ComplaintRecord, data) | {"detail": tuple(data.get("detail", ())), "known_issue": known})


def with_schema1_fields(case: CaseResult) -> CaseResult:
    """A case of schema 1 with the fields of schema 2, read from its texts."""
    issue, death = schema1.known_issue(case.outcome, case.reason), schema1.death(case.identity)
    return replace(
        case,
        where=schema1.where(case.cell),
        known_issue=KnownIssueMatch(*issue) if issue else None,
        death=DeathRecord(death[0], case.identity, death[1]) if death else None,
        parameters=own_parameters(case.nodeid, case.cell),
    )


def _setup(path: Path) -> tuple[SetupStep, ...]:
    """The steps in the file. Leaves out a line that was cut short. A run of an older harness has no such file."""
    found = []
    with contextlib.suppress(OSError):
        for line in path.read_text(errors="replace").splitlines():
            with contextlib.suppress(ValueError, TypeError, AttributeError):
                found.append(SetupStep(**_fields_of(SetupStep, json.loads(line))))
    return tuple(found)


def _fields_of(kind: type, data: dict[str, Any]) -> dict[str, Any]:
    """The entries of ``data`` that are fields of the dataclass ``kind``. A newer harness may have written more."""
    names = {item.name for item in fields(kind)}
    return {key: value for key, value in data.items() if key in names}


def _write(path: Path, data: dict[str, Any]) -> None:
    write_text(path, json.dumps(data, indent=1, default=str))


def write_text(path: Path, text: str) -> None:
    """Replace the file ``path`` atomically. Raises OSError that names the file, and then leaves the old one."""
    descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(descriptor, "w") as file:
            file.write(text)
        Path(temporary).chmod(0o644)
        Path(temporary).replace(path)
    except OSError as exc:
        raise OSError(exc.errno, exc.strerror, str(path)) from exc
    finally:
        Path(temporary).unlink(missing_ok=True)
