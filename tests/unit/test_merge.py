# SPDX-License-Identifier: BSD-2-Clause
"""Shards that are merged into one run."""

from __future__ import annotations

from dataclasses import Field, fields, replace
from pathlib import Path

import pytest
import written
from typer.testing import CliRunner

from harness.cli import report as cli_report
from harness.cli.main import make_app
from harness.errors import UsageError
from harness.plugin.outcome import exit_code
from harness.report import html
from harness.report.command import rerun_command
from harness.report.outcomes import COUNTED
from harness.results import merge, model
from harness.results.model import CaseResult, KnownIssueMatch, Outcome, RunResult, SetupStep


def run(path: Path, cases: dict[str, str], code: int | None = 0, **inputs: str) -> Path:
    for name, outcome in cases.items():
        directory = path / "cases" / name
        directory.mkdir(parents=True)
        (directory / "x.console.log").write_text(path.name)
        case = CaseResult(f"t.py::{name}[c]", "s", name, "c", Outcome(outcome), 1.0, started=f"2026 {path.name}", directory=name)
        model.write_case(directory, case)
    path.mkdir(exist_ok=True)
    model.write_run(path, RunResult(path.name, f"2026 {path.name}", "2026 z" if code is not None else "", "fxh run", inputs, code))
    return path


def test_shards_become_one(tmp_path: Path) -> None:
    one = run(tmp_path / "1", {"a": "passed", "b": "infrastructure"}, 4, shard="1/3", kernel="k1")
    two = run(tmp_path / "2", {"b": "failed", "c": "passed"}, 1, shard="3/3", kernel="k2")
    found = merge.merge([one, two], tmp_path / "new", exit_code)
    assert {case.case: case.outcome for case in found.run.cases} == {"a": "passed", "b": "failed", "c": "passed"}
    assert (found.missing, found.differing, found.run.exit_code) == (("2/3",), ("kernel",), 1)
    assert found.run.inputs["kernel"] == "k1 | k2"
    assert model.read_run(tmp_path / "new") == found.run
    assert (tmp_path / "new/cases/b/x.console.log").read_text() == "2", "files of the result that counts"


def test_a_judged_result_outweighs_a_later_lost_host(tmp_path: Path) -> None:
    one, two = run(tmp_path / "1", {"a": "passed"}), run(tmp_path / "2", {"a": "infrastructure"}, 4)
    assert merge.merge([one, two], tmp_path / "new", exit_code).run.cases[0].outcome == "passed"


def test_a_paused_result_neither_outweighs_a_judged_one_nor_decides_the_exit_code(tmp_path: Path) -> None:
    one, two = run(tmp_path / "1", {"a": "passed"}), run(tmp_path / "2", {"a": "failed"})
    case = model.read_run(two).cases[0]
    model.write_case(two / "cases" / "a", replace(case, paused="on-failure"))
    assert merge.merge([one, two], tmp_path / "new", exit_code).run.cases[0].outcome == "passed"
    assert exit_code((replace(case, paused="on-failure"),)) == 0
    assert exit_code((case, replace(case, paused="on-failure"))) == 1


def test_a_killed_shard_is_an_infrastructure_failure(tmp_path: Path) -> None:
    one, two = run(tmp_path / "1", {"a": "passed"}), run(tmp_path / "2", {"b": "passed"}, None)
    found = merge.merge([one, two], tmp_path / "new", exit_code)
    assert (found.run.exit_code, found.run.ended) == (4, "")


def shard(path: Path, name: str, options: dict[str, str], **more: object) -> Path:
    """A run with one passed case ``name``, with these options."""
    run(path, {name: "passed"})
    old = model.read_run(path)
    model.write_run(path, replace(old, options=options, **more))  # type: ignore[arg-type]
    return path


def test_branch_and_options_are_kept(tmp_path: Path) -> None:
    options = {"guest": "freebsd", "image": "f142", "xen": "4.20"}
    both = [shard(tmp_path / name, name, options, branch="stable/14") for name in "ab"]
    found = merge.merge(both, tmp_path / "new", exit_code)
    assert (found.run.branch, found.run.options, found.differing) == ("stable/14", options, ())
    assert [case.options for case in found.run.cases] == [{}, {}]
    assert rerun_command(found.run, found.run.cases[0]) == "fxh run s -k 'a[c]' --guest freebsd --image f142 --xen 4.20"


def test_a_case_is_rerun_with_the_options_of_its_own_run(tmp_path: Path) -> None:
    one = shard(tmp_path / "1", "a", {"guest": "control", "xen": "4.17", "disk": "/one/disk.img", "scale": "2"})
    two = shard(tmp_path / "2", "b", {"guest": "control,freebsd", "xen": "4.20", "disk": "/two/disk.img", "root": "xbd0p2"})
    found = merge.merge([one, two], tmp_path / "new", exit_code)
    assert found.run.options == {
        "guest": "control,freebsd", "xen": "4.17,4.20", "disk": "/one/disk.img", "scale": "2", "root": "xbd0p2",
    }  # fmt: skip
    for joined in (found.run, model.read_run(found.path)):
        assert [joined.options_of(case) for case in joined.cases] == [model.read_run(path).options for path in (one, two)], (
            "each as it ran"
        )
    assert found.differing == ("--scale", "--root")
    twice = merge.merge([found.path], tmp_path / "twice", exit_code).run
    assert [twice.options_of(case) for case in twice.cases] == [found.run.options_of(case) for case in found.run.cases]


def test_runs_of_two_branches_are_refused(tmp_path: Path) -> None:
    one, two = (shard(tmp_path / name, "a", {}, branch=name) for name in ("main", "stable-14"))
    with pytest.raises(UsageError, match="the runs differ in their branch: 'main' in main, 'stable-14' in stable-14"):
        merge.merge([one, two], tmp_path / "new", exit_code)
    assert not (tmp_path / "new").exists()


def test_setup_steps_are_kept(tmp_path: Path) -> None:
    steps = [SetupStep(f"kernel {name}", 3.0, "2026", "t.py::a") for name in "ab"]
    paths = [shard(tmp_path / name, name, {}) for name in "ab"]
    for path, step in zip(paths, steps, strict=True):
        model.add_setup(path, step)
    found = merge.merge(paths, tmp_path / "new", exit_code)
    assert found.run.setup == tuple(steps)
    assert model.read_run(found.path) == found.run


@pytest.mark.parametrize("item", fields(RunResult), ids=lambda item: item.name)
def test_every_field_is_merged(tmp_path: Path, item: Field[object]) -> None:
    """A single run keeps all fields but name, command and exit code. This also covers fields that are added later."""
    values: dict[str, object] = {
        "str": f"some {item.name}", "int | None": 1, "dict[str, str]": {"guest": "control"}, "bool": True, "float": 2.0,
        "tuple[SetupStep, ...]": (SetupStep("k", 1.0),), "tuple[CaseResult, ...]": (), "tuple[str, ...]": ("a", "b"),
    }  # fmt: skip
    given = {"started": "2026", "ended": "2027", "run": "new", item.name: values[str(item.type)]}
    path = tmp_path / "1"
    path.mkdir()
    one = RunResult(**given)  # type: ignore[arg-type]
    model.write_run(path, one)
    model.add_setup(path, *one.setup)
    joined = merge.merge([path], tmp_path / "new", lambda _: 1).run
    if item.name not in ("run", "command", "exit_code"):
        assert getattr(joined, item.name) == given[item.name]


def test_every_outcome_is_counted(tmp_path: Path) -> None:
    cases = {outcome: outcome for outcome in model.OUTCOMES}
    path = run(tmp_path / "runs" / "1", cases, 1)
    result = CliRunner().invoke(make_app(), ["merge", str(path), "--reports", str(tmp_path)])
    assert result.exit_code == 1
    counts = ", ".join(f"1 {outcome}" for outcome in model.OUTCOMES)
    assert result.stdout == f"{len(cases)} cases of 1 runs: {counts}\n"
    assert "known" in model.OUTCOMES


def test_every_outcome_has_a_letter() -> None:
    for table in (html.SQUARES, cli_report._LETTERS, model.WORST_FIRST, COUNTED):
        assert set(table) == set(model.OUTCOMES)


def test_no_run(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"run\.json: No such file"):
        merge.merge([tmp_path], tmp_path / "new", exit_code)


def test_missing_shards() -> None:
    assert merge.missing_shards(["", "2/3"]) == ("1/3", "3/3")
    assert merge.missing_shards(["1/2", "2/2"]) == ()


def test_a_case_cannot_name_another_directory(tmp_path: Path) -> None:
    """A run may come from another machine, so its files must not choose the directories to copy."""
    one, two = shard(tmp_path / "1", "a", {"image": "x"}), shard(tmp_path / "2", "b", {"image": "y"})
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    file = one / "cases/a/case.json"
    file.write_text(file.read_text().replace('"directory": "a"', f'"directory": "{elsewhere}"'))
    assert str(elsewhere) in file.read_text()
    merge.merge([one, two], tmp_path / "new", exit_code)
    assert list(elsewhere.iterdir()) == []
    assert (tmp_path / "new/cases/a/case.json").exists()


def test_a_shard_of_schema_1_is_merged_with_one_of_schema_2(tmp_path: Path) -> None:
    issue = "bug 1: it halts"
    one = written.save_schema1(tmp_path, written.run(1, written.case("K", "test_a", issue=issue), written.case("F", "test_b")))
    two = written.save(tmp_path, written.run(2, written.case("K", "test_c", issue=issue, cell="control-pv-pv-lab")))
    joined = merge.merge([one, two], tmp_path / "new", exit_code).run
    assert {case.case: (case.where.host, case.known_issue, case.death and case.death.kind) for case in joined.cases} == {
        "test_a": ("xen-4.20", KnownIssueMatch("bug 1", "it halts"), None),
        "test_b": ("xen-4.20", None, "panic"),
        "test_c": ("pv-lab", KnownIssueMatch("bug 1", "it halts"), None),
    }
    again = merge.merge([tmp_path / "new"], tmp_path / "twice", exit_code).run
    assert [(case.key, case.where, case.known_issue) for case in again.cases] == [
        (case.key, case.where, case.known_issue) for case in joined.cases
    ]
