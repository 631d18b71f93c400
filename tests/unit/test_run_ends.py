# SPDX-License-Identifier: BSD-2-Clause
"""Every end of a run leaves an exit code, a page, a mail and a verdict. These cases need no host."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from harness.deadline import ConditionNotMet, Deadline
from harness.errors import ExitCode
from harness.plugin.ending import Ending, install
from harness.plugin.outcome import exit_code
from harness.plugin.state import WORKER_ENV
from harness.results.merge import _exit_code
from harness.results.model import RunResult
from tests.conftest import planted_suite

CASES = '''
"""Planted."""
import os, signal, time
from pathlib import Path
import pytest

HERE = Path(__file__).parent

@pytest.mark.parametrize("n", range(4))
def test_passes(cell, case, n):
    time.sleep(0.2)

@pytest.mark.parametrize("n", range(4))
def test_fails(cell, case, n):
    assert n != 0, "planted"
    time.sleep(1)

def test_killed(cell, case):
    (case.directory / "seen.log").write_text("output before the kill")
    os.kill(os.getpid(), signal.SIGKILL)

@pytest.mark.parametrize("n", range(2))
def test_slow(cell, case, n):
    (HERE / f"slow-{n}").touch()
    time.sleep(300)

def test_exits(cell, case):
    pytest.exit("enough")
'''
FILES = {"allurerc.json", "index.html", "junit.xml", "mail.eml", "report.json", "run.json", "setup.jsonl"}
FXH = [sys.executable, "-c", "import sys; sys.argv[0] = 'fxh'; from harness.cli.main import main; main()"]


@pytest.fixture
def suite() -> Iterator[Path]:
    with planted_suite(CASES) as file:
        yield file


class Run:
    """A process of ``fxh run``."""

    def __init__(self, suite: Path, reports: Path, keyword: str, *words: str) -> None:
        self.suite, self.reports, self.latest = suite, reports, reports / "latest"
        argv = [*FXH, "run", str(suite), "--type", "pv", "--reports", str(reports), *(["-k", keyword] if keyword else []), *words]
        self.process = subprocess.Popen(
            argv, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True,
            preexec_fn=_usual_signals,
        )  # fmt: skip

    def slow(self, count: int) -> None:
        """Wait until ``count`` cases sleep."""

        def check() -> None:
            if len(list(self.suite.parent.glob("slow-*"))) < count:
                raise ConditionNotMet("no case sleeps yet")

        Deadline(60).wait("a slow case", check)

    def end(self) -> str:
        try:
            return self.process.communicate(timeout=120)[0]
        finally:
            if self.process.poll() is None:
                os.killpg(self.process.pid, signal.SIGKILL)

    @property
    def cases(self) -> dict[str, Any]:
        found = [json.loads(path.read_text()) for path in self.latest.glob("cases/*/case.json")]
        return {case["nodeid"].partition("::")[2]: case for case in found}

    def report(self) -> Any:
        assert {path.name for path in self.latest.iterdir() if path.is_file()} == FILES
        return json.loads((self.latest / "report.json").read_text())


def _usual_signals() -> None:
    # A shell that starts pytest in the background makes it ignore these.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGHUP, signal.SIG_DFL)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)


def test_exitfirst_stops_all_workers(suite: Path, tmp_path: Path) -> None:
    run = Run(suite, tmp_path, "fails or slow", "-x", "-n", "2")
    # The slow cases are last: a worker that ran its whole queue would reach one.
    out = run.end()
    assert run.process.returncode == 1, out
    assert run.cases["test_fails[control-pv-xen-4.20-0]"]["outcome"] == "failed"
    assert run.report()["exit_code"] == 1
    assert "1 case that never passed" in out
    assert "report: " in out


def test_a_resumed_run_continues_after_exitfirst(suite: Path, tmp_path: Path) -> None:
    first = Run(suite, tmp_path, "fails", "-x", "-n", "2")
    first.end()
    resumed = Run(suite, tmp_path, "fails", "--resume", "latest", "-n", "2")
    out = resumed.end()
    assert resumed.process.returncode == 1, out
    assert len(resumed.cases) == 4


@pytest.mark.parametrize(
    ("workers", "number", "sends"),
    [
        ((), signal.SIGINT, [os.kill]),
        ((), signal.SIGHUP, [os.kill]),
        ((), signal.SIGTERM, [os.kill, os.kill]),
        (("-n", "2"), signal.SIGINT, [os.killpg]),
        (("-n", "2"), signal.SIGTERM, [os.kill]),
        # timeout(1) signals make, which signals fxh; then timeout signals the process group. It adds SIGCONT.
        (("-n", "2"), signal.SIGTERM, [os.kill, os.killpg]),
        (("-n", "2"), signal.SIGTERM, [os.killpg, os.kill]),
    ],
    ids=[
        "Ctrl-C",
        "terminal gone",
        "told twice",
        "workers, Ctrl-C",
        "workers, told to end",
        "workers, told twice",
        "all told first",
    ],
)
def test_interrupted(
    workers: tuple[str, ...], number: int, sends: list[Callable[[int, int], None]], suite: Path, tmp_path: Path
) -> None:
    run = Run(suite, tmp_path, "slow", *workers)
    run.slow(2 if workers else 1)
    for send in sends:
        send(run.process.pid, number)
        time.sleep(0.05)
    out = run.end()
    assert run.process.returncode == 130, out
    assert run.report()["exit_code"] == 130
    assert "No case was judged; the run was interrupted." in out


@pytest.mark.parametrize(
    ("keyword", "words", "code"),
    [("killed or passes", (), 4), ("killed or fails", (), 1), ("killed", ("-x",), 4)],
)
def test_a_killed_worker_is_an_infrastructure_failure(
    keyword: str, words: tuple[str, ...], code: int, suite: Path, tmp_path: Path
) -> None:
    run = Run(suite, tmp_path, keyword, "-n", "2", *words)
    out = run.end()
    assert run.process.returncode == code, out
    assert run.report()["exit_code"] == code
    killed = run.cases.get("test_killed[control-pv-xen-4.20]")
    assert killed is not None, out
    assert (killed["outcome"], killed["suite"], killed["case"], killed["cell"], killed["files"]) == (
        "infrastructure", "planted", "test_killed", "control-pv-xen-4.20", ["seen.log"],
    )  # fmt: skip
    assert "crashed while running" in killed["reason"]
    assert "INFRASTRUCTURE" in out
    assert "1 case could not be judged" in out


def test_killed_workers_do_not_make_an_empty_run(suite: Path, tmp_path: Path) -> None:
    """xdist replaces them or ends with an error, depending on the order of messages."""
    run = Run(suite, tmp_path, "slow", "-n", "2")
    run.slow(2)
    # Each worker is a child of the controller.
    for child in Path(f"/proc/{run.process.pid}/task/{run.process.pid}/children").read_text().split():
        os.kill(int(child), signal.SIGKILL)
    out = run.end()
    assert run.process.returncode == 4, out
    assert [case["outcome"] for case in run.cases.values()] == ["infrastructure"] * 2
    assert run.report()["exit_code"] == 4
    assert "2 cases could not be judged" in out


class Controller:
    """The part of pytest's Config that Ending uses."""

    pluginmanager = SimpleNamespace(hasplugin=lambda name: name == "dsession")


@pytest.mark.parametrize(
    ("error", "code"), [(OSError("cannot send (already closed?)"), 4), (AssertionError("pytest's own"), 3)], ids=["gone", "a bug"]
)
def test_an_error_in_pytest_is_a_bug_or_a_lost_worker(error: Exception, code: int, monkeypatch: pytest.MonkeyPatch) -> None:
    lost: list[str] = []
    ended: list[int] = []
    monkeypatch.setattr("harness.plugin.session.crashed", lambda config, nodeid, why: lost.append(nodeid))
    monkeypatch.setattr("harness.plugin.session.end", lambda config, code: ended.append(code(())))
    ending = Ending(Controller())  # type: ignore[arg-type]
    ending.pytest_runtest_logstart("a")
    ending.pytest_runtest_logstart("b")
    ending.pytest_runtest_logfinish("a")
    try:
        raise error
    except Exception:
        ending.pytest_internalerror(pytest.ExceptionInfo.from_current())
    step = ending.pytest_sessionfinish()
    next(step)
    with pytest.raises(StopIteration):
        next(step)
    assert (ended, lost) == ([code], ["b"] if code == 4 else [])


@pytest.mark.parametrize(("workers", "code"), [((), 3), (("-n", "2"), 130)], ids=["alone", "worker"])
def test_a_case_that_ends_pytest(workers: tuple[str, ...], code: int, suite: Path, tmp_path: Path) -> None:
    """xdist reports only that the worker was interrupted."""
    run = Run(suite, tmp_path, "exits", *workers)
    out = run.end()
    assert run.process.returncode == code, out


@pytest.mark.parametrize("workers", [(), ("-n", "2")], ids=["alone", "workers"])
def test_a_suite_with_a_syntax_error(workers: tuple[str, ...], suite: Path, tmp_path: Path) -> None:
    suite.write_text("def test_x(:")
    run = Run(suite, tmp_path, "", *workers)
    out = run.end()
    assert run.process.returncode == 3, out


@pytest.mark.parametrize("error", [OSError("cannot send (already closed?)"), EOFError()])
@pytest.mark.parametrize(("workers", "code"), [(True, ExitCode.NOTHING_SELECTED), (False, ExitCode.HARNESS)])
def test_an_error_at_the_end_does_not_lose_the_result(
    error: Exception, workers: bool, code: int, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """xdist may fail to reach workers that have ended. Without workers the cause is a file that cannot be written."""
    ended: list[object] = []
    monkeypatch.setattr("harness.plugin.session.end", lambda config, code: ended.append(code(())))
    plugins = SimpleNamespace(hasplugin=lambda name: name == "dsession" and workers)
    ending = Ending(SimpleNamespace(pluginmanager=plugins))  # type: ignore[arg-type]
    step = ending.pytest_sessionfinish()
    next(step)
    with pytest.raises(StopIteration):
        step.throw(error)
    assert ended == [code]


def test_a_worker_releases_its_hosts_before_xdist_reports_its_end() -> None:
    """The controller kills a worker seconds after that report, also in the middle of a power cycle."""
    order: list[str] = []

    class Runner:
        def pytest_sessionfinish(self) -> None:
            order.append("fixtures")

    class Interactor:
        @pytest.hookimpl(hookwrapper=True)
        def pytest_sessionfinish(self) -> Iterator[None]:
            yield
            order.append("workerfinished")

    worker_env = SimpleNamespace(close=lambda: order.append("hosts"))
    plugins = pytest.PytestPluginManager()
    stash = pytest.Stash()
    stash[WORKER_ENV] = worker_env  # type: ignore[assignment]
    config: Any = SimpleNamespace(stash=stash, pluginmanager=plugins, workerinput={})
    plugins.register(Runner())
    install(config)
    plugins.register(Interactor())
    plugins.hook.pytest_sessionfinish(session=None, exitstatus=0)
    assert order[:3] == ["fixtures", "hosts", "workerfinished"]


def test_an_interrupted_part_leaves_a_merged_run_unfinished() -> None:
    runs = [RunResult("a", "", exit_code=0), RunResult("b", "", exit_code=130)]
    assert _exit_code(0, runs, exit_code, ()) == ExitCode.INFRASTRUCTURE
    assert _exit_code(0, runs[:1], exit_code, ()) == 0
    assert _exit_code(1, runs, exit_code, ()) == 1
    assert _exit_code(0, runs[:1], exit_code, ("2/2",)) == ExitCode.INFRASTRUCTURE


def test_a_part_with_a_harness_error_leaves_a_merged_run_unfinished() -> None:
    """A suite that fails to collect has no cases."""
    broken = RunResult("b", "", exit_code=ExitCode.HARNESS)
    assert _exit_code(0, [RunResult("a", "", exit_code=0), broken], exit_code, ()) == ExitCode.INFRASTRUCTURE
