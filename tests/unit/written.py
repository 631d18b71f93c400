# SPDX-License-Identifier: BSD-2-Clause
"""Factories of results: cases from letters, runs from cases, and run directories of schema 1 and 2."""

from __future__ import annotations

import json
from pathlib import Path

from harness.results import model, schema1
from harness.results.model import Boot, CaseResult, DeathRecord, KnownIssueMatch, Outcome, RunResult, Stamp

WORDS = {"P": "passed", "F": "failed", "S": "skipped", "I": "infrastructure", "H": "harness", "K": "known"}
CELL = "freebsd-pvh-xen-4.20"
IDENTITY = "0badcafe panic: at the disco @ vm_fault"


def case(
    word: str = "P", name: str = "test_boots", *, cell: str = CELL, kernel: str = "A", issue: str = "", **more: object
) -> CaseResult:
    """A result with the outcome of a letter. A failed case has a panic. ``more`` are fields of the result.

    ``issue="bug 1: why"`` is a known issue: an expected failure for K, and an unexpected pass for F.
    """
    fields: dict[str, object] = {
        "nodeid": f"suites/boot/test_boot.py::{name}[{cell}]",
        "suite": "boot",
        "case": name,
        "cell": cell,
        "outcome": Outcome(WORDS[word]),
        "where": schema1.where(cell),
        "seconds": 2.0,
        "title": f"{name.removeprefix('test_').replace('_', ' ')}",
        "inputs": {"kernel": f"kernel.{kernel} sha256:{kernel * 64}", "xen": "4.20.1"},
        "boots": (Boot("d", (Stamp("kernel", 1.0), Stamp("login", 4.0))),),
        "directory": f"{name}-{cell}",
        "started": "2026-11-25T01:00:00Z",
    }
    if word == "F":
        fields |= {"reason": "panic: at the disco in vm_fault()", "identity": IDENTITY, "death": DeathRecord("panic", IDENTITY, "at the disco"), "excerpt": "panic: at the disco\ncpuid = 0\n"}  # fmt: skip
    if issue:
        bug, _, why = issue.partition(": ")
        gone = word == "F"
        text = "the case passes, but is listed as a known issue" if gone else "known issue"
        fields |= {"known_issue": KnownIssueMatch(bug, why, gone), "reason": f"{text}: {issue}\nmore"}
        fields |= {"identity": "", "death": None, "excerpt": ""}
    return CaseResult(**fields | more)  # type: ignore[arg-type]


def run(number: int, *cases: CaseResult, **more: object) -> RunResult:
    fields: dict[str, object] = {
        "run": f"run-{number:03}",
        "started": f"2026-11-{1 + number % 28:02}T01:00:00Z",
        "ended": f"2026-11-{1 + number % 28:02}T01:10:00Z",
        "command": "fxh run boot",
        "inputs": {"harness": "0.1.0 commit abc"},
        "exit_code": 0,
        "cases": tuple(sorted(cases, key=lambda item: (item.suite, item.case, item.cell))),
    }
    return RunResult(**fields | more)  # type: ignore[arg-type]


def save(reports: Path, done: RunResult, consoles: dict[str, bytes] | None = None) -> Path:
    """Write a run's directory as the plugin does. ``consoles`` maps a case's directory to its console."""
    path = reports / "runs" / done.run
    (path / "cases").mkdir(parents=True, exist_ok=True)
    for item in done.cases:
        directory = path / "cases" / item.directory
        directory.mkdir(exist_ok=True)
        for name, data in (consoles or {}).items():
            if name == item.directory:
                (directory / "g.console.log").write_bytes(data)
        model.write_case(directory, item)
    model.write_run(path, done)
    return path


def save_schema1(reports: Path, done: RunResult) -> Path:
    """Write a run's directory as the harness did before schema 2: known issue and death are only in the texts."""
    path = save(reports, done)
    for item in done.cases:
        file = path / "cases" / item.directory / "case.json"
        data = json.loads(file.read_text()) | {"schema": 1}
        for name in ("where", "known_issue", "death", "parameters"):
            del data[name]
        if item.known_issue:
            start = "this passes, and is listed as a known issue, " if item.known_issue.gone else "known issue, "
            data["reason"] = f"{start}{item.known_issue.line}\nmore"
        file.write_text(json.dumps(data))
    (path / "run.json").write_text(json.dumps(json.loads((path / "run.json").read_text()) | {"schema": 1}))
    return path
