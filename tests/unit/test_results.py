# SPDX-License-Identifier: BSD-2-Clause
"""Outcomes, exit codes, results on disk, and the page: hostile content included."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import pytest

from harness.console.deaths import Death
from harness.errors import CommandFailed, DeadlineExpired, GuestCommandFailed, GuestDied, HarnessError, LabDead, UsageError
from harness.plugin.cells import Cell, elsewhere, unmet
from harness.plugin.outcome import classify, exit_code
from harness.plugin.selection import title
from harness.results import model, run_dir
from harness.results.model import Boot, CaseResult, RunResult, Stamp

HOSTILE = "</pre><script>alert(1)</script>\x1b[31m\x1b]0;title\x07\x00\u202e&amp;"


def case(outcome: str = "passed", **more: object) -> CaseResult:
    return CaseResult("suites/boot/t.py::test_a[x]", "boot", "test_a", "x", outcome, 1.0, **more)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("error", "outcome"),
    [
        (AssertionError("x"), "failed"),
        (GuestDied(Death("panic", "x")), "failed"),
        (GuestCommandFailed("g", "false", 1, ""), "failed"),
        (DeadlineExpired("x"), "infrastructure"),
        (CommandFailed("xl list", 1, "", "no"), "infrastructure"),
        (LabDead("x"), "infrastructure"),
        (UsageError("x"), "infrastructure"),
        (HarnessError("x"), "harness"),
        (TypeError("x"), "harness"),
        (pytest.skip.Exception("x"), "skipped"),
    ],
)
def test_who_is_to_blame(error: BaseException, outcome: str) -> None:
    assert classify(error).outcome == outcome


@pytest.mark.parametrize(
    ("outcomes", "code"),
    [
        (["passed"], 0),
        (["passed", "skipped"], 0),
        (["skipped"], 5),
        ([], 5),
        (["passed", "infrastructure"], 4),
        (["passed", "infrastructure", "harness"], 3),
        (["infrastructure", "harness", "failed"], 1),
    ],
)
def test_exit_codes(outcomes: list[str], code: int) -> None:
    assert exit_code(tuple(case(outcome) for outcome in outcomes)) == code


def test_results_survive_the_way_to_disk(tmp_path: Path) -> None:
    done = case(
        "failed",
        reason=HOSTILE,
        boots=(Boot("d", (Stamp("kernel", 1.5),), 2.0),),
        files=("a.log",),
        metrics={"m": 1.0},
        directory="one",
    )
    directory = tmp_path / "cases" / "one"
    directory.mkdir(parents=True)
    model.write_case(directory, done)
    (tmp_path / "cases" / "two").mkdir()
    (tmp_path / "cases" / "two" / "case.json").write_text("{")
    model.write_run(tmp_path, RunResult("r", "now"))
    data = json.loads((tmp_path / "run.json").read_text()) | {"of_a_newer_version": 1}
    (tmp_path / "run.json").write_text(json.dumps(data))
    assert model.read_run(tmp_path) == RunResult("r", "now", cases=(done,))


def test_needs() -> None:
    marks = [pytest.mark.needs(os="freebsd", types=("pvh",)).mark]
    assert unmet(marks, Cell("control", "pv", "xen-4.20")) == "needs a FreeBSD guest"
    assert unmet(marks, Cell("freebsd", "hvm", "xen-4.20")) == "needs guest type pvh"
    assert unmet(marks, Cell("freebsd", "pvh", "xen-4.20")) == ""
    assert elsewhere(marks, "suites/boot/test_x.py::test_y[a-b]") == "fxh run boot -k test_y --disk IMAGE --type pvh"


def test_latest_points_to_the_last_of_runs_that_begin_at_once(tmp_path: Path) -> None:
    runs = [tmp_path / "runs" / f"r{n}" for n in range(20)]
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(run_dir.latest, runs))
    run_dir.latest(runs[3])
    assert (tmp_path / "latest").readlink() == Path("runs/r3")
    assert [p.name for p in tmp_path.iterdir()] == ["latest"]


@pytest.mark.parametrize(
    ("doc", "expected"),
    [("B2: letters in ``xl list``.\n\nMore.", "B2: letters in xl list."), ("", "test_x"), (None, "test_x")],
)
def test_a_title_is_text(doc: str | None, expected: str) -> None:
    item = SimpleNamespace(name="test_x[control-pv]", function=SimpleNamespace(__doc__=doc))
    assert title(item) == expected  # type: ignore[arg-type]
