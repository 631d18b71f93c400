# SPDX-License-Identifier: BSD-2-Clause
"""The clean runs of tests/planted/score.py see a new line of the boot's console and a new complaint."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType

import pytest

from harness.report.trends import BOOTS
from harness.results.model import CaseResult, ComplaintRecord, Outcome, RunResult
from tests.conftest import import_script

BOOT_LINES = [f"line {word} of the boot" for word in ("alpha", "beta", "gamma", "delta")]


@pytest.fixture
def score() -> ModuleType:
    return import_script("tests/planted", "score")


def run_result(where: Path, name: str, lines: list[str], *identities: str) -> RunResult:
    directory = where / name / "cases" / "boot"
    directory.mkdir(parents=True)
    (directory / "guest.console.log").write_text("".join(f"{line}\r\n" for line in lines))
    complaints = tuple(ComplaintRecord("warning", "guest", f"message {one}", one) for one in identities)
    nodeid = "suites/boot/test_boot.py::test_boots_to_login[pv]"
    boot = CaseResult(
        nodeid, "boot", "test_boots_to_login", "pv", Outcome.PASSED, 1.0, directory=directory.name, complaints=complaints
    )
    assert boot.key == BOOTS
    return RunResult(name, "2026-12-01T00:00:00Z", cases=(boot,))


def test_equal_runs_have_no_news(score: ModuleType, tmp_path: Path) -> None:
    first, this = (run_result(tmp_path, name, BOOT_LINES, "reversal") for name in "01")
    assert score.new_console_lines(first, this, tmp_path) == []
    assert score.new_complaints(first, this) == []


def test_a_new_line_and_a_new_complaint_are_news(score: ModuleType, tmp_path: Path) -> None:
    first = run_result(tmp_path, "0", BOOT_LINES, "reversal")
    this = run_result(tmp_path, "1", [*BOOT_LINES[:-1], "xbd0: a line that was never there"], "reversal", "storm")
    assert score.new_console_lines(first, this, tmp_path) == [
        "+ xbd0: a line that was never there",
        f"- {BOOT_LINES[-1]}",
    ]
    assert score.new_complaints(first, this) == ["test_boots_to_login: guest: message storm"]
