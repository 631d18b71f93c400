# SPDX-License-Identifier: BSD-2-Clause
"""Outcomes, exit codes, and results on disk in schema 1 and 2."""

from __future__ import annotations

import json
import re
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import jsonschema
import pytest
import written

from harness.console.deaths import Death
from harness.errors import CommandFailed, DeadlineExpired, GuestCommandFailed, GuestDied, HarnessError, LabDead, UsageError
from harness.plugin.cells import Cell, elsewhere, unmet
from harness.plugin.outcome import classify, exit_code
from harness.plugin.selection import title
from harness.results import model, run_dir, schema1
from harness.results.model import Boot, CaseResult, Outcome, RunResult, Stamp
from harness.results.where import Where, own_parameters

HOSTILE = "</pre><script>alert(1)</script>\x1b[31m\x1b]0;title\x07\x00\u202e&amp;"


def case(outcome: str = "passed", **more: object) -> CaseResult:
    return CaseResult("suites/boot/t.py::test_a[x]", "boot", "test_a", "x", Outcome(outcome), 1.0, **more)  # type: ignore[arg-type]


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
def test_outcome_of_an_exception(error: BaseException, outcome: str) -> None:
    assert classify(error).outcome == outcome


@pytest.mark.parametrize("text", ["x" * 1_000_000, "line\n" * 200_000, f"panic: boom\n{'y' * 50_000}\nlast"])
def test_a_long_reason_is_cut(text: str) -> None:
    for error in (
        AssertionError(text),
        GuestCommandFailed("g", "false", 1, text),
        GuestDied(Death("panic", text)),
        TypeError(text),
    ):
        reason = classify(error).reason
        assert len(reason) < 21_000
        assert re.search(r"\d+ (more characters|characters are left out)", reason)
        assert "last" not in text or reason.endswith("\nlast")


def test_a_usual_reason_is_not_cut() -> None:
    text = "\n".join(f"observed:  line {number} {'z' * 100}" for number in range(150))
    assert classify(AssertionError(text)).reason == text


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


def test_results_are_read_as_they_were_written(tmp_path: Path) -> None:
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


def test_results_of_a_newer_schema_are_refused(tmp_path: Path) -> None:
    model.write_run(tmp_path, RunResult("r", "now"))
    (tmp_path / "run.json").write_text(json.dumps(json.loads((tmp_path / "run.json").read_text()) | {"schema": 3}))
    with pytest.raises(ValueError, match=r"run\.json has schema 3; this harness reads up to 2"):
        model.read_run(tmp_path)


WRITTEN = [
    written.case("P"), written.case("F"), written.case("K", issue="bug 1: it halts"), written.case("F", issue="bug 1: it halts"),
    written.case("I"), written.case("S"), written.case("P", cell="control-pv-pv-lab"), written.case("P", cell=""),
    written.case("F", nodeid=f"suites/boot/test_boot.py::test_boots[{written.CELL}-halt]"),
]  # fmt: skip


@pytest.mark.parametrize("done", WRITTEN, ids=range(len(WRITTEN)))
def test_case_json_fits_its_schema_and_keeps_the_keys_of_schema_1(done: CaseResult, tmp_path: Path) -> None:
    schema = json.loads((Path(__file__).parents[2] / "docs/schema/case-2.json").read_text())
    jsonschema.Draft202012Validator.check_schema(schema)
    model.write_case(tmp_path, done)
    data = json.loads((tmp_path / "case.json").read_text())
    jsonschema.validate(data, schema)
    assert model.case_from_json(data) == done
    assert set(data) >= {
        "nodeid", "suite", "case", "cell", "outcome", "seconds", "reason", "identity", "excerpt", "boots", "inputs", "files",
        "started", "directory", "title", "metrics", "phase", "formerly", "setup", "options",
    }  # fmt: skip


@pytest.mark.parametrize("done", WRITTEN, ids=range(len(WRITTEN)))
def test_case_json_of_schema_1_is_read(done: CaseResult, tmp_path: Path) -> None:
    path = written.save_schema1(tmp_path, written.run(1, done))
    assert json.loads((path / "run.json").read_text())["schema"] == 1
    (read,) = model.read_run(path).cases
    assert (read.where, read.known_issue, read.death, read.key) == (done.where, done.known_issue, done.death, done.key)
    assert str(read.where) == read.cell
    assert isinstance(read.outcome, Outcome)


@pytest.mark.parametrize(
    ("name", "parts"),
    [
        ("freebsd-pvh-xen-4.20", Where("freebsd", "pvh", "xen-4.20", "4.20")),
        ("freebsd-hvm-uefi-xen-4.17", Where("freebsd", "hvm", "xen-4.17", "4.17", "uefi")),
        ("control-pv-pv-lab", Where("control", "pv", "pv-lab")),
        ("freebsd-pvh-freebsd-pvh-x", Where("freebsd", "pvh", "freebsd-pvh-x")),
        ("freebsd-pvshim-my-xen-4.20", Where("freebsd", "pvshim", "my-xen-4.20")),
        ("x", Where(host="x")),
        ("", Where()),
    ],
)
def test_a_cell_of_schema_1_has_its_parts(name: str, parts: Where) -> None:
    assert schema1.where(name) == parts
    assert str(parts) == name


@pytest.mark.parametrize(
    "one",
    [Cell("freebsd", "hvm", "xen-4.20", "4.20", firmware="uefi"), Cell("control", "pv", "pv-lab"), Cell("freebsd", "pvh", "freebsd-pvh-x")],
)  # fmt: skip
def test_a_cell_is_recorded_by_its_parts(one: Cell) -> None:
    assert one.where == Where(one.guest, one.type, one.host, one.xen, one.firmware)
    assert str(one.where) == str(one)


@pytest.mark.parametrize(
    ("nodeid", "name", "own"),
    [
        ("t.py::test_a[freebsd-pvh-pv-lab-halt]", "freebsd-pvh-pv-lab", "halt"),
        ("t.py::test_a[4096-freebsd-pvh-pv-lab]", "freebsd-pvh-pv-lab", "4096"),
        ("t.py::test_a[freebsd-pvh-freebsd-pvh-x]", "freebsd-pvh-freebsd-pvh-x", ""),
        ("t.py::test_a[halt]", "", "halt"),
        ("t.py::test_a", "", ""),
    ],
)
def test_parameters_are_without_the_cell(nodeid: str, name: str, own: str) -> None:
    assert own_parameters(nodeid, name) == own


def test_needs() -> None:
    marks = [pytest.mark.needs(os="freebsd", types=("pvh",)).mark]
    assert unmet(marks, Cell("control", "pv", "xen-4.20")) == "needs a FreeBSD guest"
    assert unmet(marks, Cell("freebsd", "hvm", "xen-4.20")) == "needs guest type pvh"
    assert unmet(marks, Cell("freebsd", "pvh", "xen-4.20")) == ""
    assert elsewhere(marks, "suites/boot/test_x.py::test_y[a-b]") == "fxh run boot -k test_y --disk IMAGE --type pvh"


def test_latest_points_to_one_of_several_runs_started_at_once(tmp_path: Path) -> None:
    runs = [tmp_path / "runs" / f"r{n}" for n in range(20)]
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(run_dir.latest, runs))
    run_dir.latest(runs[3])
    assert (tmp_path / "latest").readlink() == Path("runs/r3")
    assert [p.name for p in tmp_path.iterdir()] == ["latest"]


@pytest.mark.parametrize(
    ("doc", "expected"),
    [("Letters in ``xl list``.\n\nMore.", "Letters in xl list."), ("", "test_x"), (None, "test_x")],
)
def test_a_title_is_text(doc: str | None, expected: str) -> None:
    item = SimpleNamespace(name="test_x[control-pv]", function=SimpleNamespace(__doc__=doc))
    assert title(item) == expected  # type: ignore[arg-type]
