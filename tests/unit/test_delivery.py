# SPDX-License-Identifier: BSD-2-Clause
"""Runs that the history lacks: merged runs with a killed shard, runs that were replaced, and a file that is damaged twice."""

from __future__ import annotations

from pathlib import Path

import pytest
from written import case, run, save

from harness import report as reporting
from harness.history import FILE, History, delivery, sqlite
from harness.history.sqlite import HistoryDamaged
from harness.plugin.outcome import exit_code
from harness.results import merge, model, run_dir
from harness.results.model import RunResult


def undelivered(reports: Path, done: RunResult) -> Path:
    path = save(reports, done)
    (path / run_dir.UNDELIVERED).write_text("no server")
    return path


def deliver(reports: Path) -> int:
    return delivery.deliver(reports / "runs", History(reports / FILE))


def test_a_merged_run_with_a_killed_shard_is_delivered(tmp_path: Path) -> None:
    parts = [
        save(tmp_path / "parts", run(1, case("P", "test_1"), inputs={"shard": "1/2"})),
        save(tmp_path / "parts", run(2, case("P", "test_2"), inputs={"shard": "2/2"}, ended="", exit_code=None)),
    ]
    path = tmp_path / "runs/joined"
    joined = merge.merge(parts, path, exit_code).run
    (path / run_dir.UNDELIVERED).write_text("no server")

    assert deliver(tmp_path) == 1

    assert [found.run for found in History(tmp_path / FILE).runs()] == ["joined"]
    assert not (path / run_dir.UNDELIVERED).exists()
    assert deliver(tmp_path) == 0
    assert (joined.exit_code, joined.ended) == (4, "")
    assert "the run did not finish" in reporting.build_report(path, model.read_run(path)).sentence


def test_an_unfinished_run_may_still_be_running(tmp_path: Path) -> None:
    path = undelivered(tmp_path, run(1, case(), ended=""))
    assert deliver(tmp_path) == 0
    assert (path / run_dir.UNDELIVERED).exists()


def test_a_replaced_merged_run_is_not_waiting(tmp_path: Path) -> None:
    parts = ("run-001", "run-002")
    path = undelivered(tmp_path, run(3, case(), parts=parts))
    History(tmp_path / FILE).record(run(4, case(), parts=parts))
    assert deliver(tmp_path) == 0
    assert [found.run for found in History(tmp_path / FILE).runs()] == ["run-004"]
    assert not (path / run_dir.UNDELIVERED).exists()


def test_a_shard_that_its_merged_run_delivers_is_not_waiting(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sqlite.File, "shared", True)
    path = undelivered(tmp_path, run(1, case(), inputs={"shard": "1/2"}))
    assert deliver(tmp_path) == 0
    assert History(tmp_path / FILE).runs() == ()
    assert not (path / run_dir.UNDELIVERED).exists()


def test_a_file_that_is_damaged_twice_leaves_a_mark(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def damaged(_: object, done: RunResult, place: int | None = None) -> int:
        raise HistoryDamaged(f"{FILE} was damaged", hint="run the command again")

    path = save(tmp_path, run(1, case()))
    with monkeypatch.context() as patch:
        patch.setattr(History, "record", damaged)
        assert not delivery.record(path, run(1, case()))
    assert "was damaged" in (path / run_dir.UNDELIVERED).read_text()
    assert deliver(tmp_path) == 1
    assert not (path / run_dir.UNDELIVERED).exists()


@pytest.mark.parametrize(
    ("started", "ended", "place"),
    [
        ("2026-11-02T00:00:00Z", "2026-11-02T01:00:00Z", 1793581200999),
        ("2026-11-02T00:00:00Z", "", 1793577600999),
        ("", "no time", 0),
        ("1900-01-01T00:00:00Z", "1900-01-01T00:00:00Z", 0),
    ],
)
def test_the_place_is_the_end_of_that_second(started: str, ended: str, place: int) -> None:
    assert delivery.place_of(run(1, started=started, ended=ended)) == place
