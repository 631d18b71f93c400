"""Shards joined into one run."""

from __future__ import annotations

from pathlib import Path

import pytest

from harness.errors import UsageError
from harness.plugin.outcome import exit_code
from harness.results import merge, model
from harness.results.model import CaseResult, RunResult


def run(path: Path, cases: dict[str, str], code: int | None = 0, **inputs: str) -> Path:
    for name, outcome in cases.items():
        directory = path / "cases" / name
        directory.mkdir(parents=True)
        (directory / "x.console.log").write_text(path.name)
        case = CaseResult(f"t.py::{name}[c]", "s", name, "c", outcome, 1.0, started=f"2026 {path.name}", directory=name)
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
    assert (tmp_path / "new/cases/b/x.console.log").read_text() == "2", "with the files of the one that counts"


def test_a_case_judged_once_is_not_undone_by_a_host_lost_later(tmp_path: Path) -> None:
    one, two = run(tmp_path / "1", {"a": "passed"}), run(tmp_path / "2", {"a": "infrastructure"}, 4)
    assert merge.merge([one, two], tmp_path / "new", exit_code).run.cases[0].outcome == "passed"


def test_a_shard_that_was_killed_is_not_all_well(tmp_path: Path) -> None:
    one, two = run(tmp_path / "1", {"a": "passed"}), run(tmp_path / "2", {"b": "passed"}, None)
    found = merge.merge([one, two], tmp_path / "new", exit_code)
    assert (found.run.exit_code, found.run.ended) == (4, "")


def test_no_run(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="is no run"):
        merge.merge([tmp_path], tmp_path / "new", exit_code)


def test_missing_shards() -> None:
    assert merge.missing_shards(["", "2/3"]) == ("1/3", "3/3")
    assert merge.missing_shards(["1/2", "2/2"]) == ()
