# SPDX-License-Identifier: BSD-2-Clause
"""The history on a real PostgreSQL: many writers, killed ones, restarts, migration, and servers that refuse."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from postgres_server import TABLES, PostgresServer, name_of, running
from sqlalchemy import Connection, insert, select
from typer.testing import CliRunner
from written import case, run, save

from harness import report as reporting
from harness import stamp
from harness.cli import run_lookup
from harness.cli.main import make_app
from harness.config import load
from harness.errors import InfrastructureError, UsageError
from harness.history import FILE, History, delivery, schema, transfer
from harness.history import postgres as module
from harness.history.postgres import Server
from harness.history.rows import observation
from harness.history.schema import RUNS
from harness.investigate import rerun
from harness.report.model import Report
from harness.results import model, run_dir
from harness.results.model import ComplaintRecord, RunResult, SetupStep

ROOT = Path(__file__).parents[2]
# A controller: each run is written as files and recorded, as at the end of `fxh run`.
CONTROLLER = """
import sys
from pathlib import Path
from harness.history.delivery import record
from written import case, run, save
reports, enough = Path(sys.argv[1]), Path(sys.argv[1] + ".enough")
for n in range(int(sys.argv[2]), int(sys.argv[3])):
    done = run(n, *[case("PF"[n % 2], f"test_{m}") for m in range(20)], run=f"{reports.name}-{n:04}", ended="2026-11-02T01:10:00Z")
    print(n, record(save(reports, done), done), flush=True)
    if enough.exists():
        break
"""


def controller(reports: Path, url: str, first: int, last: int) -> subprocess.Popen[str]:
    environment = os.environ | {"PYTHONPATH": f"{ROOT}:{Path(__file__).parent}", "FXH_RUN_HISTORY": url}
    argv = [sys.executable, "-c", CONTROLLER, str(reports), str(first), str(last)]
    return subprocess.Popen(argv, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)


def published(reports: Path, done: RunResult) -> Report:
    """The report of a run, recorded and written as at the end of `fxh run`."""
    return reporting.publish(save(reports, done), done)


def delivered(reports: Path) -> int:
    return delivery.deliver(reports / "runs", delivery.history_of(reports))


@contextmanager
def stoppable(server: PostgresServer) -> Iterator[PostgresServer]:
    """The server for a test that stops it: it runs again afterwards."""
    try:
        yield server
    finally:
        if not server.runs:
            server.start()


@pytest.fixture
def url(postgres: PostgresServer, monkeypatch: pytest.MonkeyPatch) -> str:
    """An empty database, which is the history of all commands of the test."""
    made = postgres.new()
    monkeypatch.setenv("FXH_RUN_HISTORY", made)
    return made


# -- many controllers -------------------------------------------------------------------------------------------------


def test_two_controllers_write_at_once_and_one_is_killed(tmp_path: Path, postgres: PostgresServer, url: str) -> None:
    living, killed = controller(tmp_path / "a", url, 0, 12), controller(tmp_path / "b", url, 0, 10_000)
    assert killed.stdout is not None
    said = [killed.stdout.readline() for _ in range(5)]
    killed.send_signal(signal.SIGKILL)
    said += killed.stdout.readlines()
    killed.wait(30)
    assert living.wait(180) == 0
    history = History(url)
    names = [found.run for found in history.runs()]
    assert sorted(name for name in names if name.startswith("a-")) == [f"a-{n:04}" for n in range(12)]
    assert sum(name.startswith("b-") for name in names) >= len(said), "each run of which the killed one said so is there"
    counts = postgres.count(url)
    assert counts["results"] == counts["runs"] * 20, "no run is recorded in part"
    assert counts["digests"] == counts["runs"] == len(set(names))
    # A later command of the second machine delivers a run whose files are complete, but which was not recorded.
    delivered(tmp_path / "b")
    whole = len(list((tmp_path / "a/runs").glob("*/run.json"))) + len(list((tmp_path / "b/runs").glob("*/run.json")))
    assert postgres.count(url)["runs"] == whole


def test_a_writer_that_dies_in_its_transaction_leaves_nothing_and_no_lock(postgres: PostgresServer, url: str) -> None:
    program = """
import os, sys, signal
from harness.history import History
from harness.history.schema import RESULTS
from sqlalchemy import event
from written import case, run
history = History(sys.argv[1])
@event.listens_for(history.database.engine, "after_cursor_execute")
def die(connection, cursor, statement, *rest):
    if statement.startswith("INSERT INTO results"):
        os.kill(os.getpid(), signal.SIGKILL)
history.record(run(1, case(), case("F", "test_more")))
"""
    history = History(url)
    environment = os.environ | {"PYTHONPATH": f"{ROOT}:{Path(__file__).parent}"}
    done = subprocess.run([sys.executable, "-c", program, url], cwd=ROOT, env=environment, timeout=120, check=False)
    assert done.returncode == -signal.SIGKILL
    history.record(run(2, case()))
    counts = postgres.count(url)
    assert (counts["runs"], counts["results"]) == (1, 1)


def test_a_writer_that_falls_silent_loses_its_lock_before_others_give_up(
    postgres: PostgresServer, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert module._SILENT < module._LOCK
    other = History(url)
    monkeypatch.setattr(module, "_SILENT", 1)
    silent = History(url)
    holder = silent.writing()
    holder.__enter__()
    other.record(run(2, case()))
    with pytest.raises(InfrastructureError):
        holder.__exit__(None, None, None)
    assert [found.run for found in other.runs()] == ["run-002"]


def test_the_server_drops_a_lost_controller_before_the_lock_times_out() -> None:
    words = module._options({})["options"].split("-c ")
    found = dict(word.strip().split("=") for word in words if word)
    silence = int(found["tcp_keepalives_idle"]) + int(found["tcp_keepalives_interval"]) * int(found["tcp_keepalives_count"])
    assert silence < module._LOCK
    assert found["tcp_user_timeout"] == found["idle_in_transaction_session_timeout"] == "20s"


def test_controllers_that_start_at_once_create_the_tables_once(tmp_path: Path, postgres: PostgresServer, url: str) -> None:
    processes = [controller(tmp_path / name, url, 0, 2) for name in "abc"]
    assert [process.wait(120) for process in processes] == [0, 0, 0]
    assert (postgres.count(url)["runs"], postgres.count(url)["results"]) == (6, 120)


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGQUIT], ids=["shutdown", "crash"])
def test_a_restart_of_the_server_loses_no_run(tmp_path: Path, postgres: PostgresServer, url: str, how: signal.Signals) -> None:
    with stoppable(postgres) as server:
        process = controller(tmp_path / "a", url, 0, 1_000)
        assert process.stdout is not None
        lines = [process.stdout.readline() for _ in range(3)]
        server.stop(how)
        # One run at least ends while the server is down.
        while "False" not in lines[-1]:
            lines.append(process.stdout.readline())
            assert lines[-1], "the controller has ended"
        server.start()
        lines.append(process.stdout.readline())
        (tmp_path / "a.enough").touch()
        lines += process.stdout.readlines()
        assert process.wait(180) == 0
        missing = [line for line in lines if "False" in line]
        assert missing
        environment = os.environ | {"FXH_RUN_HISTORY": url, "PYTHONPATH": str(ROOT)}
        argv = [sys.executable, "-m", "harness.cli", "history", "--reports", str(tmp_path / "a")]
        for _ in range(2):
            done = subprocess.run(argv, env=environment, capture_output=True, text=True, timeout=120, check=True)
        assert "delivered" not in done.stderr, "a second command has nothing to deliver"
        counts = server.count(url)
        assert (counts["runs"], counts["results"]) == (len(lines), 20 * len(lines))
        assert not list((tmp_path / "a").glob(f"runs/*/{run_dir.UNDELIVERED}"))


def test_a_night_without_the_server_is_delivered_before_the_next_one(
    tmp_path: Path, postgres: PostgresServer, url: str, caplog: pytest.LogCaptureFixture
) -> None:
    with stoppable(postgres) as server:
        published(tmp_path, run(1, case()))
        server.stop()
        night = published(tmp_path, run(2, case("F", kernel="B"), case("P", "test_more", kernel="B"), ended=stamp.now()))
        path = tmp_path / "runs" / "run-002"
        assert [item.verdict.kind for item in night.cases] == ["baseline untested", "passed"], "neither a regression nor new"
        assert "(infrastructure, not a failure of the product)" in night.note
        assert "the administrator must start the server" in night.note
        assert "the administrator must start the server" in (path / run_dir.UNDELIVERED).read_text()
        assert "the run is not in the history yet" in caplog.text
        for file in ("index.html", "mail.eml", "report.json"):
            assert "No comparison with earlier runs" in " ".join((path / file).read_text().split())
        assert [run_lookup.with_delivery(path, code) for code in (0, 1, 3, 5)] == [4, 1, 3, 4]
        run_dir.prune(tmp_path / "runs", 1)
        assert path.is_dir(), "a run that the history lacks is not pruned"
        server.start()
        third = published(tmp_path, run(3, case("F", kernel="C")))
        assert [item.verdict.kind for item in third.cases] == ["still failing"], "the night counts"
        assert [found.run for found in History(url).runs()] == ["run-001", "run-002", "run-003"]
        assert delivered(tmp_path) == 0
        result = CliRunner().invoke(make_app(), ["report", "run-002", "--reports", str(tmp_path)])
        assert result.exit_code == 0
        assert "1 regression" in result.stdout, "a later report has the comparison"
        assert (server.count(url)["runs"], server.count(url)["results"]) == (3, 4)


def test_a_late_run_comes_before_those_that_were_recorded_meanwhile(tmp_path: Path, url: str) -> None:
    other = tmp_path / "other"
    for number, ended in ((1, "2026-11-02T01:00:00Z"), (3, "2026-11-04T01:00:00Z")):
        night = run(number, case("P" if number == 1 else "F", kernel="B"), ended=ended)
        History(url).record(night, delivery.place_of(night))
    save(other, run(2, case("P"), ended="2026-11-03T01:00:00Z"))
    save(other, run(4, case("P"), started="2090-01-01T00:00:00Z", ended="2090-01-01T01:00:00Z"))
    assert delivered(other) == 2
    assert [found.run for found in History(url).runs()] == ["run-001", "run-002", "run-003", "run-004"]
    History(url).record(run(5, case()))
    assert History(url).runs()[-1].run == "run-005", "a clock that is ahead does not keep its run the last one"


# -- migration --------------------------------------------------------------------------------------------------------


def old_history(path: Path, nights: int = 12) -> History:
    """A history in SQLite with known issues, complaints, setup steps and a renamed case."""
    history = History(path)
    seen = ComplaintRecord("warning", "guest", "WARNING: x", "guest warning x")
    for n in range(nights):
        cases = [case("PPF"[n % 3], f"test_{m}", kernel="AB"[n // 6]) for m in range(5)]
        cases += [case("K", "test_known", issue="bug 1: it halts"), replace(case("P", "test_new"), complaints=(seen,) * (n % 2))]
        if n == nights - 1:
            cases.append(case("P", "test_last", formerly=("boot/test_boot::test_0",)))
        history.record(run(n, *cases, branch="main", setup=(SetupStep("lab", 3.0 + n),)))
    return history


def test_a_history_of_sqlite_moves_with_all_its_rows(tmp_path: Path, postgres: PostgresServer, url: str) -> None:
    old = old_history(tmp_path / FILE)
    with old.reading() as connection:
        before = {name: connection.exec_driver_sql(f"SELECT count(*) FROM {name}").scalar_one() for name in TABLES}
    words = ["history", "--import", str(tmp_path / FILE), "--reports", str(tmp_path)]
    result = CliRunner().invoke(make_app(), words)
    assert result.stdout == f"12 runs with {before['results']} results copied, 0 runs were there\n"
    assert postgres.count(url) == before | {"parts": 0}
    new = History(url)
    assert [seen.seen for seen in new.results()] == [seen.seen for seen in old.results()]
    assert [replace(found, number=0) for found in new.runs()] == [replace(found, number=0) for found in old.runs()]
    assert list(new.digests().values()) == list(old.digests().values())
    assert new.complaints(new.number("x"), 200) == old.complaints(old.number("x"), 200)
    assert new.setups(new.number("x"), 200) == old.setups(old.number("x"), 200)
    assert CliRunner().invoke(make_app(), words).stdout == "0 runs with 0 results copied, 12 runs were there\n"
    assert postgres.count(url) == before | {"parts": 0}


def test_an_interrupted_migration_continues(
    tmp_path: Path, postgres: PostgresServer, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    old_history(tmp_path / FILE)
    copy, done = transfer._copy, []

    def interrupted(*words: Any) -> tuple[int, int]:
        if len(done) == 7:
            raise KeyboardInterrupt
        done.append(words)
        return copy(*words)

    monkeypatch.setattr(transfer, "_copy", interrupted)
    with pytest.raises(KeyboardInterrupt):
        transfer.import_file(tmp_path / FILE, History(url))
    assert postgres.count(url)["runs"] == 7
    monkeypatch.undo()
    assert transfer.import_file(tmp_path / FILE, History(url))[::2] == (5, 7)
    assert [found.run for found in History(url).runs()] == [f"run-{n:03}" for n in range(12)]


def test_an_import_knows_the_parts_of_merged_runs(tmp_path: Path, postgres: PostgresServer, url: str) -> None:
    parts = ("run-001", "run-002")
    both = (case("P", "test_1"), case("P", "test_2"))
    target = History(url)
    target.record(run(4, *both, parts=parts))
    files = {
        "an older merge": [run(3, *both, parts=parts)],
        "a shard": [run(1, both[0])],
        "an overlap": [run(5, *both, parts=("run-002", "run-009")), run(6, *both)],
    }
    for number, (name, nights) in enumerate(files.items()):
        source = History(tmp_path / f"{number}.sqlite")
        for night in nights:
            source.record(night)
        copied = transfer.import_file(tmp_path / f"{number}.sqlite", target)
        assert (copied.runs, copied.known) == (len(nights) - 1, 1), name
    assert [found.run for found in target.runs()] == ["run-004", "run-006"]
    assert set(target.parts()) == set(parts)


def test_an_imported_merge_replaces_its_parts(tmp_path: Path, postgres: PostgresServer, url: str) -> None:
    target = History(url)
    target.record(run(1, case("P", "test_1")))
    History(tmp_path / FILE).record(run(3, case("P", "test_1"), case("P", "test_2"), parts=("run-001", "run-002")))
    assert transfer.import_file(tmp_path / FILE, target)[:2] == (1, 2)
    assert [found.run for found in target.runs()] == ["run-003"]
    assert (postgres.count(url)["results"], postgres.count(url)["parts"]) == (2, 2)


def test_a_run_of_two_controllers_at_once_is_not_called_an_unreachable_server(url: str) -> None:
    history = History(url)
    number = history.record(run(1, case()))
    with pytest.raises(InfrastructureError, match="duplicate key") as caught, history.writing() as connection:
        connection.execute(insert(RUNS).from_select(RUNS.c.keys(), select(RUNS).where(RUNS.c.id == number)))
    assert caught.value.hint == "another controller recorded the same run meanwhile; run the command again"


def test_what_cannot_be_imported(tmp_path: Path, url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UsageError, match="no such file"):
        transfer.import_file(tmp_path / "none", History(url))
    old_history(tmp_path / FILE, 1)
    monkeypatch.setenv("FXH_RUN_HISTORY", "")
    with pytest.raises(UsageError, match=r"--import without run\.history"):
        transfer.import_file(tmp_path / FILE, delivery.history_of(tmp_path))


def test_the_tables_are_migrated_and_a_newer_or_foreign_schema_is_refused(
    tmp_path: Path, postgres: PostgresServer, url: str
) -> None:
    History(url).record(run(1, case()))
    server = History(url).database
    assert isinstance(server, Server)

    def step(connection: Connection) -> None:
        connection.exec_driver_sql("ALTER TABLE runs ADD COLUMN note text NOT NULL DEFAULT 'old'")

    def broken(connection: Connection) -> None:
        connection.exec_driver_sql("DROP TABLE results")
        connection.execute(insert(RUNS).values(id=1))

    with pytest.raises(server.failures):
        server.prepare((*schema.MIGRATIONS, broken))
    assert postgres.count(url)["results"] == 1, "a failed migration changes nothing"
    server.prepare((*schema.MIGRATIONS, step))
    assert postgres.sql("SELECT run, note FROM runs", name_of(url)) == [("run-001", "old")]
    made = published(tmp_path, run(2, case("F", kernel="B")))
    assert f"the history has schema {schema.VERSION + 1}; this harness reads up to {schema.VERSION}" in made.note
    assert "the operator of this machine must install" in made.note
    assert [item.verdict.kind for item in made.cases] == ["baseline untested"]
    assert postgres.count(url)["runs"] == 1
    foreign = postgres.new()
    postgres.sql("CREATE TABLE runs (id integer)", name_of(foreign))
    with pytest.raises(UsageError, match="its tables have no schema version") as caught:
        Server(foreign).prepare()
    assert "the administrator must create an empty database" in caught.value.hint


# -- servers that refuse ----------------------------------------------------------------------------------------------


def refused(reports: Path, url: str, monkeypatch: pytest.MonkeyPatch, **more: Any) -> Report:
    """The report of a failed night with a server that does not take it. No verdict blames or clears the product."""
    monkeypatch.setenv("FXH_RUN_HISTORY", url)
    made = published(reports, run(90, case("F", kernel="B"), **more))
    path = reports / "runs" / "run-090"
    assert (path / run_dir.UNDELIVERED).is_file()
    assert run_lookup.with_delivery(path, 0) == 4
    return made


@pytest.mark.parametrize(
    ("setup", "user", "says", "who"),
    [
        ("ALTER DATABASE {name} SET default_transaction_read_only = on", "fxh", "cannot execute .* in a read-only transaction", "name the primary"),
        ("GRANT SELECT ON ALL TABLES IN SCHEMA public TO reader", "reader", "permission denied for table", "administrator must grant"),
        ("SELECT 1", "nobody_known", 'role "nobody_known" does not exist', "correct the user and password"),
    ],
    ids=["read-only", "rights", "user"],
)  # fmt: skip
def test_a_server_that_refuses_to_write(
    tmp_path: Path, postgres: PostgresServer, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture,
    setup: str, user: str, says: str, who: str,
) -> None:  # fmt: skip
    url = postgres.new()
    History(url).record(run(1, case()))
    if not postgres.sql("SELECT 1 FROM pg_roles WHERE rolname = 'reader'"):
        postgres.sql("CREATE ROLE reader LOGIN")
    postgres.sql(setup.format(name=name_of(url)), name_of(url))
    made = refused(tmp_path, postgres.url(name_of(url), user), monkeypatch)
    assert who in caplog.text
    (path,) = tmp_path.glob(f"runs/*/{run_dir.UNDELIVERED}")
    assert re.search(says, path.read_text())
    kinds = [item.verdict.kind for item in made.cases]
    # A history that can be read gives the verdict; the run is missing in it only.
    assert kinds == (["baseline untested"] if user == "nobody_known" else ["regression"])
    assert "The history does not have this run yet (infrastructure)" in made.note or "No comparison" in made.note
    assert postgres.count(url)["runs"] == 1


def test_a_missing_database_and_a_stopped_server(tmp_path: Path, postgres: PostgresServer) -> None:
    with pytest.raises(InfrastructureError, match='database "fxh_none" does not exist') as caught:
        History(postgres.url("fxh_none"))
    assert "the administrator must create the database" in caught.value.hint
    with pytest.raises(InfrastructureError) as caught:
        History("postgresql+psycopg://fxh@127.0.0.1:1/fxh")
    assert caught.value.message.startswith("postgresql://127.0.0.1:1/fxh: connection failed: ")
    assert "the administrator must start the server" in caught.value.hint


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can mount a small file system")
def test_a_full_disk_of_the_server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    if subprocess.run(["unshare", "-m", "true"], capture_output=True, check=False).returncode:
        pytest.skip("this machine allows no mount namespace")
    with running(small=24) as server:
        server.sql(f"CREATE TABLESPACE small LOCATION '{server.directory}/small'")
        url = server.new("TABLESPACE small")
        History(url).record(run(1, case()))
        monkeypatch.setenv("FXH_RUN_HISTORY", url)
        big = [case("F", f"test_{n}", reason=os.urandom(300).hex(), kernel="B") for n in range(2_000)]
        done = run(2, *big)
        path = save(tmp_path, replace(done, cases=done.cases[:1]))
        filler = server.fill()
        assert not delivery.record(path, done)
        assert re.search("No space left on device.*the administrator of the database must free space", caplog.text, re.DOTALL)
        assert (server.count(url)["runs"], server.count(url)["results"]) == (1, 1), "the transaction is undone"
        filler.unlink()
        History(url).record(run(3, case()))
        assert [found.run for found in History(url).runs()] == ["run-001", "run-003"]


def test_a_server_that_hangs_ends_no_wait_late(postgres: PostgresServer, url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_CONNECT", 3)
    monkeypatch.setattr(module, "_TRANSACTION", 3)
    with stoppable(postgres) as server:
        history = History(url)
        history.record(run(1, case()))
        server.pause(True)
        try:
            begun = time.monotonic()
            with pytest.raises(InfrastructureError):
                history.record(run(2, case()))
            with pytest.raises(InfrastructureError):
                History(url)
            assert time.monotonic() - begun < 60
        finally:
            server.pause(False)
        history.record(run(2, case()))
        assert len(history.runs()) == 2


def test_a_password_appears_nowhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    secret = "hunter2"
    for url in (
        f"postgresql+psycopg://fxh:{secret}@127.0.0.1:1/fxh",
        f"postgresql+psycopg://fxh@127.0.0.1:1/fxh?password={secret}&application_name=x",
        f"postgresql+psycopg:///fxh?host=127.0.0.1&port=1&password={secret}",
    ):
        made = refused(tmp_path, url, monkeypatch, options={"guest": "freebsd"})
        assert "postgresql://127.0.0.1" in made.note
        shown = CliRunner().invoke(make_app(), ["config", "show", "run.history"]).stdout
        assert "postgresql://127.0.0.1" in shown
        texts = [shown, caplog.text, repr(made)]
        texts += [file.read_text() for file in tmp_path.rglob("*") if file.is_file()]
        for command in ("history", "report"):
            result = CliRunner().invoke(make_app(), [command, "--reports", str(tmp_path)])
            texts.append(f"{result.output} {result.exception}")
        assert not any(secret in text for text in texts)


@pytest.mark.parametrize(
    "url",
    ["hunter2", "postgresql://fxh:hunter2@h/d", "postgresql+psycopg://fxh:hunter2", "postgresql+psycopg://fxh:hunter2@h",
     "postgresql+psycopg://fxh:12/hunter2@h/d", "postgresql+psycopg://fxh:hunter2@h:port/d", "sqlite:///hunter2"],
)  # fmt: skip
def test_an_invalid_url_is_refused_before_the_run_and_not_shown(url: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with pytest.raises(UsageError) as caught:
        load(environment={"FXH_RUN_HISTORY": url})
    assert "hunter2" not in str(caught.value)
    assert "environment FXH_RUN_HISTORY: run.history = " in caught.value.message
    assert "postgresql+psycopg://USER@HOST/DATABASE" in caught.value.hint
    (tmp_path / "fxh.toml").write_text(f'[run]\nhistory = ["{url}"]\n')
    monkeypatch.setenv("FXH_CONFIG", str(tmp_path / "fxh.toml"))
    with pytest.raises(UsageError) as caught:
        load(environment={})
    assert "hunter2" not in str(caught.value)


def test_without_the_driver_the_error_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "psycopg", None)
    with pytest.raises(UsageError, match=r"pip install 'freebsd-xen-harness\[postgresql\]'"):
        History("postgresql+psycopg://h/d")


def test_hostile_and_long_texts_are_stored(url: str) -> None:
    odd = "\x00\ud800 \x1b[31m'; DROP TABLE runs; -- %s {} ü"
    inputs = {"kernel": "k" * 100_000, odd: odd}
    seen = case("F", reason=odd, identity=odd, inputs=inputs, phase="call", complaints=(ComplaintRecord("k", odd, odd, odd),))
    done = run(1, seen, branch=odd, command=odd, options={"guest": odd}, setup=(SetupStep(odd, 1.0),))
    history = History(url)
    history.record(done)
    history.record(run(2, replace(seen, inputs=inputs | {"xen": "2"})))
    first, _ = history.results()
    assert first.seen == observation(done, seen), "the same failure is recognised"
    assert "DROP TABLE" in first.reason
    assert len(history.runs()) == 2


def test_a_trial_of_blame_stays_out_of_the_shared_history(tmp_path: Path, url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    given = []

    def ran(argv: list[str], env: dict[str, str], **more: Any) -> subprocess.CompletedProcess[str]:
        given.append(env.get("FXH_RUN_HISTORY"))
        return subprocess.CompletedProcess(argv, 4, "", "")

    monkeypatch.setattr(rerun.subprocess, "run", ran)
    rerun.rerun(replace(case(), nodeid="suites/boot/test_boot.py::test_x[c]"), {}, cell="c", reports=tmp_path)
    assert given == [""]


def test_help_imports_no_database() -> None:
    program = "import sys; from harness.cli.main import make_app; make_app(); sys.exit(bool({'sqlalchemy', 'psycopg'} & sys.modules.keys()))"
    subprocess.run([sys.executable, "-c", program], cwd=ROOT, check=True, timeout=60)


# -- shards -----------------------------------------------------------------------------------------------------------


def shards(homes: Path, night: int, kernel: str, failing: str = "", without: int = 0) -> list[str]:
    """The directories of three shards, each run in a home of its own as `fxh run --shard` does. One may never arrive."""
    found = []
    for part in range(1, 4):
        home = homes / f"night-{night}" / f"home-{part}"
        name = f"test_{part}"
        done = run(night * 10 + part, case("F" if name == failing else "P", name, kernel=kernel), inputs={"shard": f"{part}/3"})
        reporting.publish(save(home, done), done)
        if part != without:
            found.append(str(home / "runs" / done.run))
    return found


def merged(tmp_path: Path, night: str, parts: list[str]) -> tuple[int, Report, str]:
    home = tmp_path / night
    result = CliRunner().invoke(make_app(), ["merge", *parts, "--reports", str(home)])
    path = (home / "latest").resolve()
    return result.exit_code, reporting.build_report(path, model.read_run(path)), result.output


def test_three_homes_give_one_verdict_one_mail_and_one_write(tmp_path: Path, postgres: PostgresServer, url: str) -> None:
    code, _, _ = merged(tmp_path, "first", shards(tmp_path, 1, "A"))
    assert (code, postgres.count(url)["runs"], postgres.count(url)["results"]) == (0, 1, 3)
    code, report, _ = merged(tmp_path, "second", shards(tmp_path, 2, "B", "test_2"))
    assert (code, postgres.count(url)["runs"], postgres.count(url)["results"]) == (1, 2, 6)
    assert report.sentence == "1 regression; 2 of 3 judged cases passed."
    assert (report.note, report.gone) == ("", ())
    assert len(list((tmp_path / "second").rglob("mail.eml"))) == 1
    assert postgres.count(url)["parts"] == 6


def test_a_shard_that_never_arrives_and_a_second_merge(tmp_path: Path, postgres: PostgresServer, url: str) -> None:
    merged(tmp_path, "first", shards(tmp_path, 1, "A"))
    parts = shards(tmp_path, 2, "B", "test_1")
    code, report, said = merged(tmp_path, "second", parts[:1] + parts[2:])
    assert code == 1, "the failure of a shard that arrived counts"
    assert "missing shards: 2/3" in said
    assert "run the CI jobs of these shards again" in said
    assert "The shards 2/3 are missing: their cases were not run." in report.note
    assert report.gone == (), "the cases of the missing shard are not gone"
    assert postgres.count(url)["runs"] == 2
    code, report, _ = merged(tmp_path, "again", parts)
    assert [item.verdict.kind for item in report.cases] == ["regression", "passed", "passed"], (
        "not still failing: it is the same run"
    )
    assert (postgres.count(url)["runs"], postgres.count(url)["results"]) == (2, 6)
    code, report, _ = merged(tmp_path, "green", shards(tmp_path, 3, "C", without=3))
    assert (code, [item.verdict.kind for item in report.cases]) == (4, ["fixed", "passed"])


def test_a_merge_without_the_server_is_delivered_once(tmp_path: Path, postgres: PostgresServer, url: str) -> None:
    with stoppable(postgres) as server:
        merged(tmp_path, "first", shards(tmp_path, 1, "A"))
        parts = shards(tmp_path, 2, "B")
        server.stop()
        code, report, _ = merged(tmp_path, "second", parts)
        assert code == 4
        assert "No comparison with earlier runs (infrastructure" in report.note
        server.start()
        for home in ("second", "second", "first", *(f"night-2/home-{n}" for n in (1, 2, 3))):
            assert CliRunner().invoke(make_app(), ["history", "--reports", str(tmp_path / home)]).exit_code == 0
        assert (server.count(url)["runs"], server.count(url)["results"]) == (2, 6)


def test_shards_of_one_home_are_replaced_by_their_merged_run(tmp_path: Path) -> None:
    """The same with SQLite, where a shard is recorded as a run until it is merged."""
    homes = [run(n, case("PPF"[n - 1], f"test_{n}"), inputs={"shard": f"{n}/3"}) for n in (1, 2, 3)]
    parts = [str(save(tmp_path, done)) for done in homes]
    for done, path in zip(homes, parts, strict=True):
        reporting.publish(Path(path), done)
    assert len(History(tmp_path / FILE).runs()) == 3
    for _ in range(2):
        result = CliRunner().invoke(make_app(), ["merge", *parts, "--reports", str(tmp_path)])
        assert result.exit_code == 1
        report = reporting.build_report((tmp_path / "latest").resolve(), model.read_run(tmp_path / "latest"))
        assert [item.verdict.kind for item in report.cases] == ["never passed", "new", "new"]
        CliRunner().invoke(make_app(), ["history", "--reports", str(tmp_path)])
        recorded = [found.run for found in History(tmp_path / FILE).runs()]
        assert recorded[-1] == (tmp_path / "latest").resolve().name
        assert not {done.run for done in homes} & set(recorded)
