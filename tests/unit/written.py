# SPDX-License-Identifier: BSD-2-Clause
"""Histories written down: runs made of words, for tests and for the bench."""

from __future__ import annotations

from pathlib import Path

from harness.results import model
from harness.results.model import Boot, CaseResult, RunResult, Stamp

WORDS = {"P": "passed", "F": "failed", "S": "skipped", "I": "infrastructure", "H": "harness", "K": "known"}
CELL = "freebsd-pvh-xen-4.20"


def case(word: str = "P", name: str = "test_boots", *, cell: str = CELL, kernel: str = "A", **more: object) -> CaseResult:
    """A result; a failed one died of a panic."""
    fields: dict[str, object] = {
        "nodeid": f"suites/boot/test_boot.py::{name}[{cell}]",
        "suite": "boot",
        "case": name,
        "cell": cell,
        "outcome": WORDS[word],
        "seconds": 2.0,
        "title": f"B1: {name.removeprefix('test_').replace('_', ' ')}",
        "inputs": {"kernel": f"kernel.{kernel} sha256:{kernel * 64}", "xen": "4.20.1"},
        "boots": (Boot("d", (Stamp("kernel", 1.0), Stamp("login", 4.0))),),
        "directory": f"{name}-{cell}",
        "started": "2026-11-25T01:00:00Z",
    }
    if word == "F":
        fields |= {"reason": "panic: at the disco in vm_fault()", "identity": "0badcafe panic: at the disco @ vm_fault", "excerpt": "panic: at the disco\ncpuid = 0\n"}  # fmt: skip
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
    """A run's directory as the plugin leaves it; ``consoles`` maps a case's directory to its console."""
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
