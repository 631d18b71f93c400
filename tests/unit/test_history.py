# SPDX-License-Identifier: BSD-2-Clause
"""The history: atomic writes, concurrent writers, killed writers, full disks, damaged files, other schemas."""

from __future__ import annotations

import os
import signal
import sqlite3
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
from sqlalchemy import text
from written import case, run

from harness.errors import InfrastructureError, UsageError
from harness.history import FILE, History, damage, nights, schema, sqlite
from harness.history.sqlite import HistoryDamaged
from harness.results.model import KnownIssueMatch

ROOT = Path(__file__).parents[2]
WRITER = """
import sys
from pathlib import Path
from harness.history import History
from written import case, run
history = History(Path(sys.argv[1]))
for n in range(int(sys.argv[2]), int(sys.argv[3])):
    history.record(run(n, *[case("P", f"test_{m}") for m in range(20)]))
    print(n, flush=True)
"""


def writer(path: Path, first: int, last: int) -> subprocess.Popen[str]:
    argv = [sys.executable, "-c", WRITER, str(path), str(first), str(last)]
    return subprocess.Popen(
        argv, cwd=ROOT, env=os.environ | {"PYTHONPATH": f"{ROOT}:{Path(__file__).parent}"}, stdout=subprocess.PIPE, text=True
    )


@pytest.fixture
def file(tmp_path: Path) -> sqlite.File:
    """The database of the history in a file."""
    found = History(tmp_path / FILE).database
    assert isinstance(found, sqlite.File)
    return found


@pytest.fixture(params=["sqlite", "postgresql"])
def history(request: pytest.FixtureRequest, tmp_path: Path) -> History:
    """An empty history in each kind of database."""
    return History(tmp_path / FILE if request.param == "sqlite" else request.getfixturevalue("postgres").new())


def test_empty(history: History) -> None:
    assert (history.runs(), history.results(), history.cases()) == ((), (), ())
    assert history.run("x") is None
    assert history.number("x") == 1


def test_recorded_results_are_read(history: History) -> None:
    first = run(1, case("P", metrics={"flood bytes": 10.0}), case("F", "test_dies"), branch="main", options={"kernel": "/k"})
    history.record(first)
    history.record(run(2, case("P", kernel="B")))
    rows = history.results()
    assert [(row.seen.run, row.seen.case, row.seen.outcome) for row in rows] == [
        ("run-001", "boot/test_boot::test_boots", "passed"),
        ("run-001", "boot/test_boot::test_dies", "failed"),
        ("run-002", "boot/test_boot::test_boots", "passed"),
    ]
    assert rows[0].metrics == {"stage kernel": 1.0, "stage login": 4.0, "flood bytes": 10.0}
    assert rows[1].seen.identity.startswith("0badcafe")
    assert rows[0].seen.inputs.values["harness"] == "0.1.0 commit abc"
    assert rows[0].seen.inputs.changes(rows[2].seen.inputs) == ("kernel",)
    assert (rows[0].seen.branch, history.runs()[0].options) == ("main", {"kernel": "/k"})
    assert len(history.results(last=1)) == 1
    assert [bool(row.metrics) for row in history.results(measured=1)] == [False, False, True]
    assert len(history.results(before=history.number("run-002"))) == 2
    assert len(history.results(run="run-001")) == 2
    assert len(history.results(case="boot/test_boot::test_boots")) == 2


def test_a_digest_follows_the_results_of_a_run(history: History) -> None:
    for number in (1, 2):
        history.record(run(number, case(), case("P", "test_old")))
    first = history.digests()
    history.record(run(1, case("F"), case("P", "test_old")))
    second = history.digests()
    one, two = first
    assert (second[one] != first[one], second[two] == first[two]) == (True, True)
    history.record(run(1, case(), case("P", "test_old")))
    assert history.digests() == first
    history.record(run(3, case("P", "test_new", formerly=("boot/test_boot::test_old",))))
    three = history.number("run-003")
    assert history.digests().keys() == {three}, "a renamed case changes older runs"
    assert nights.fingerprints(history, [one, two, three]).keys() == {one, two, three}


def test_runs_are_ordered_by_recording_not_by_clock(history: History) -> None:
    history.record(run(20, case(), started="2030-01-01T00:00:00Z"))
    history.record(run(3, case(), started="1970-01-01T00:00:00Z"))
    assert [found.run for found in history.runs()] == ["run-020", "run-003"]
    assert [row.seen.run for row in history.results()] == ["run-020", "run-003"]


def test_recording_a_run_again_replaces_it_in_place(history: History) -> None:
    history.record(run(1, case("F")))
    history.record(run(2, case("P")))
    history.record(run(1, case("P"), case("P", "test_more")))
    assert [row.seen.outcome for row in history.results()] == ["passed"] * 3
    assert [found.run for found in history.runs()] == ["run-001", "run-002"]


def test_renamed_case_keeps_its_results(history: History) -> None:
    history.record(run(1, case("P", "test_old"), case("P", "test_old", cell="other")))
    history.record(run(2, case("F", "test_new", formerly=("boot/test_boot::test_old",))))
    assert [row.seen.run for row in history.results(case="boot/test_boot::test_new")] == ["run-001", "run-002"]
    assert [row.seen.cell for row in history.results(case="boot/test_boot::test_old")] == ["other"]


def test_concurrent_writers(tmp_path: Path) -> None:
    processes = [writer(tmp_path / FILE, n * 100, n * 100 + 15) for n in range(3)]
    assert [process.wait(120) for process in processes] == [0, 0, 0]
    assert len(History(tmp_path / FILE).runs()) == 45
    assert len(History(tmp_path / FILE).results()) == 45 * 20


def test_a_killed_writer_loses_no_finished_run(tmp_path: Path) -> None:
    process = writer(tmp_path / FILE, 0, 10_000)
    assert process.stdout is not None
    said = [process.stdout.readline() for _ in range(5)]
    time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    said += process.stdout.readlines()
    process.wait(30)
    history = History(tmp_path / FILE)
    assert len(history.runs()) >= len(said)
    assert {len(history.results(run=found.run)) for found in history.runs()} == {20}


def test_full_disk_is_reported_and_earlier_runs_stay(file: sqlite.File) -> None:
    history = History(file.path)
    history.record(run(1, case()))
    with history.database.engine.connect() as connection:
        pages = connection.execute(text("PRAGMA page_count")).scalar_one()

    def no_room(connection: sqlite3.Connection, _record: object) -> None:
        connection.execute(f"PRAGMA max_page_count = {pages + 1}")

    from sqlalchemy import event

    event.listen(history.database.engine, "connect", no_room)
    with pytest.raises(InfrastructureError, match="full") as caught:
        history.record(run(2, *[case("F", f"test_{n}", reason="x" * 500) for n in range(200)]))
    assert caught.value.hint == "free space on that disk"
    event.remove(history.database.engine, "connect", no_room)
    assert [found.run for found in history.runs()] == ["run-001"]
    history.record(run(2, case()))
    assert len(history.runs()) == 2


def test_newer_schema_is_refused_and_unchanged(file: sqlite.File) -> None:
    history = History(file.path)
    history.record(run(1, case()))
    with sqlite3.connect(file.path) as connection:
        connection.execute(f"PRAGMA user_version = {schema.VERSION + 1}")
    before = file.path.read_bytes()
    with pytest.raises(UsageError, match=f"schema {schema.VERSION + 1}; this harness reads up to {schema.VERSION}"):
        History(file.path)
    assert file.path.read_bytes() == before


def test_older_schema_is_migrated(file: sqlite.File) -> None:
    history = History(file.path)
    history.record(run(1, case()))

    def step(connection: object) -> None:
        connection.execute(text("ALTER TABLE runs ADD COLUMN note TEXT NOT NULL DEFAULT 'old'"))  # type: ignore[attr-defined]

    with file.engine.connect() as connection:
        sqlite.migrate(connection, (*schema.MIGRATIONS, step))
        assert connection.execute(text("SELECT run, note FROM runs")).all() == [("run-001", "old")]
        assert connection.execute(text("PRAGMA user_version")).scalar_one() == schema.VERSION + 1


def test_a_failed_migration_keeps_the_older_schema(file: sqlite.File) -> None:
    history = History(file.path)
    history.record(run(1, case()))

    def broken(connection: object) -> None:
        connection.execute(text("DROP TABLE results"))  # type: ignore[attr-defined]
        raise RuntimeError

    with file.engine.connect() as connection, pytest.raises(RuntimeError):
        sqlite.migrate(connection, (*schema.MIGRATIONS, broken))
    assert len(History(file.path).results()) == 1


def test_a_file_that_is_not_a_database_is_set_aside_unchanged(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / FILE).write_bytes(b"this is no database, " * 500)
    history = History(tmp_path / FILE)
    assert history.runs() == ()
    assert (tmp_path / f"{FILE}.broken-1").read_bytes().startswith(b"this is no database")
    assert "set aside as history.sqlite.broken-1" in caplog.text
    history.record(run(1, case()))
    assert len(history.runs()) == 1


def test_readable_runs_of_a_damaged_file_are_copied(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    history = History(tmp_path / FILE)
    for n in range(60):
        history.record(run(n, *[case("P", f"test_{m}") for m in range(30)]))
    with sqlite3.connect(tmp_path / FILE) as connection:
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    data = bytearray((tmp_path / FILE).read_bytes())
    data[-120_000:-80_000] = b"\xa5" * 40_000
    (tmp_path / FILE).write_bytes(data)

    with pytest.raises(HistoryDamaged, match=r"set aside as history\.sqlite\.broken-1"):
        history.results()

    assert (tmp_path / f"{FILE}.broken-1").read_bytes() == bytes(data)
    assert len(history.runs()) == 60, "the runs table was whole"
    assert len(history.results()) > 0
    history.record(run(100, case()))
    assert history.runs()[-1].run == "run-100"


def test_empty_file_is_a_new_history(tmp_path: Path) -> None:
    (tmp_path / FILE).touch()
    assert History(tmp_path / FILE).runs() == ()


def test_an_unreadable_file_is_reported(tmp_path: Path) -> None:
    (tmp_path / FILE).mkdir()
    with pytest.raises(InfrastructureError, match="unable to open"):
        History(tmp_path / FILE)


def test_case_that_ran_twice_counts_once(history: History) -> None:
    history.record(run(1, case("F"), replace(case("P"), directory="again")))
    assert len(history.results()) == 1


# -- known issues -----------------------------------------------------------------------------------------------------

ISSUE = "bug 1: it halts"


def known(history: History) -> list[tuple[str, str, str]]:
    return [(row.seen.run, row.seen.outcome.value, row.seen.known) for row in history.results()]


def test_known_issues_are_fields_and_the_reason_is_free_text(history: History) -> None:
    history.record(run(1, case("K", issue=ISSUE, reason="any text")))
    history.record(run(2, case("F", issue=ISSUE, reason="any other text")))
    history.record(run(3, case("F", reason="a failure")))
    assert known(history) == [("run-001", "failed", ISSUE), ("run-002", "passed", ISSUE), ("run-003", "failed", "")]
    # A run that is recorded again without the known issue has none.
    history.record(run(1, case("F", reason="any text")))
    assert known(history)[0] == ("run-001", "failed", "")


def test_known_issues_of_an_older_harness_are_read_from_the_reason(file: sqlite.File) -> None:
    """It has no table of known issues, but can use the file of a newer harness."""
    history = History(file.path)
    history.record(run(1, case("K", reason=f"known issue, {ISSUE}\npanic: x")))
    history.record(run(2, case("F", reason=f"this passes, and is listed as a known issue, {ISSUE}\nRemove its entry.")))
    with sqlite3.connect(file.path) as connection:
        assert connection.execute("SELECT name FROM sqlite_master WHERE name = 'known_issues'").fetchall() == []
    assert known(history) == [("run-001", "failed", ISSUE), ("run-002", "passed", ISSUE)]
    assert schema.VERSION == 1


def test_a_renamed_case_keeps_its_known_issue(history: History) -> None:
    history.record(run(1, case("K", "test_old", issue=ISSUE, reason="x")))
    history.record(run(2, case("P", "test_new", formerly=("boot/test_boot::test_old",))))
    assert [row.seen.known for row in history.results(case="boot/test_boot::test_new")] == [ISSUE, ""]


def test_known_issues_are_read_from_a_damaged_file(file: sqlite.File) -> None:
    history = History(file.path)
    history.record(run(1, case("K", issue=ISSUE, reason="x"), case("F", "test_dies")))
    (found,) = damage.salvage(file.path)
    assert {item.case: item.known_issue for item in found.cases} == {
        "test_boots": KnownIssueMatch("bug 1", "it halts"), "test_dies": None,
    }  # fmt: skip
    assert {item.case: item.death and item.death.kind for item in found.cases} == {"test_boots": None, "test_dies": "panic"}
    assert {item.key for item in found.cases} == {"boot/test_boot::test_boots", "boot/test_boot::test_dies"}
    assert all(item.where == case().where for item in found.cases)


def test_a_part_of_a_merged_run_is_not_added_again(history: History) -> None:
    shards = [run(n, case("P", f"test_{n}")) for n in (1, 2)]
    for done in shards:
        history.record(done)
    number = history.record(run(3, case("P", "test_1"), case("P", "test_2"), parts=("run-001", "run-002")))
    assert [history.record(done) for done in shards] == [number, number]
    assert [found.run for found in history.runs()] == ["run-003"]
    assert history.parts() == {"run-001": number, "run-002": number}
    assert len(history.results()) == 2
    assert history.record(run(4, case("P", "test_1"), parts=("run-002", "run-005"))) == number, "a second merge replaces the first"
    assert set(history.parts()) == {"run-002", "run-005"}


def test_the_parts_of_merged_runs_are_read_from_a_damaged_file(file: sqlite.File) -> None:
    history = History(file.path)
    merged = run(3, case(), parts=("run-002", "run-001"))
    history.record(merged)
    history.record(run(4, case()))
    assert [found.parts for found in damage.salvage(file.path)] == [merged.parts, ()]
