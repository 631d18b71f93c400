# SPDX-License-Identifier: BSD-2-Clause
"""``fxh run --pause`` on a real terminal. The guest is a real shell on a pty, dom0 is this machine."""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pexpect
import pytest

from harness import trace
from harness.cli import completion
from harness.console.terminal import TypedStream
from harness.errors import LabDead, UsageError
from harness.history.store import FILE, History
from harness.hosts import debugger
from harness.hosts.debugger import Debugger
from harness.plugin import pause
from harness.plugin.state import ATTEMPT, CASE, PAUSE
from harness.results.model import PASSED
from harness.transport import Completed
from harness.transport.replay import ReplayStream
from harness.verdicts import values
from harness.verdicts.judge import judge
from harness.verdicts.values import Observation
from tests.conftest import ROOT, planted_suite

FXH = ["-c", "import sys; sys.argv[0] = 'fxh'; from harness.cli.main import main; main()"]
CASES = '''
"""Planted."""
def test_passes(cell, case):
    print("it is captured")

def test_fails(cell, case):
    assert 1 == 2, "planted"
'''
# The consoles of two guests, one of them dead, and dom0; a stub that serves nothing, with a fake gdb.
SERVE = """
import contextlib, os, sys
from pathlib import Path
from types import SimpleNamespace
sys.path[:0] = ["tests/unit"]
from played import LINUX
from test_session import LOGIN
from harness import trace
from harness.console.reader import ConsoleReader
from harness.console.session import Session
from harness.deadline import Deadline
from harness.hosts.debugger import Debugger
from harness.plugin import pause_prompt
from harness.plugin.case_context import CaseContext
from harness.transport.local import LocalTransport
from harness.transport.replay import ReplayStream

place = Path(sys.argv[1])
def reader(name, stream):
    return ConsoleReader(stream, place / f"{name}.console.log", tables=LINUX, name=name, running=True).start()
alive = reader("alive", LocalTransport().open(["bash", "-c", LOGIN % "sh"], pty=True))
session = Session(alive).login("root", deadline=Deadline(20))
gone = reader("gone", ReplayStream(b"control login: "))
gone.join(5)
def attached():
    return (place / "attached").exists()
@contextlib.contextmanager
def stub(domain):
    one = Debugger("guest", f"a stub for domain {domain}", "/run/gdb", attached=attached)
    yield () if (place / "refused").exists() else (one, Debugger("lab", "the lab", "/run/lab"))
host = SimpleNamespace(
    transport=LocalTransport(), facts=SimpleNamespace(name="here"), debuggers=stub, describe_access=lambda: SimpleNamespace(dom0="ssh x"))
guests = [
    SimpleNamespace(name="gone", domid=1, console=gone, symbols=None, lent=lambda: contextlib.nullcontext("")),
    SimpleNamespace(name="alive", domid=2, console=alive, symbols=None, lent=session.lent),
    SimpleNamespace(name="never created", domid=-1),
]
with trace.record(place / trace.FILE), trace.step(trace.PAUSE, "before-call"):
    pause_prompt.serve("before the call of a case", CaseContext(place, host=host, guests=guests))
print("budgets run again" if alive._tracker.budgets_on else "budgets are off")
print("the case goes on:", session.run("echo $((40+2))", Deadline(20)).text)
"""


@pytest.fixture
def terminal(tmp_path: Path) -> Iterator[Callable[..., Any]]:
    """Start Python in a terminal of 33 rows and 101 columns."""
    spawned = []

    def start(*words: str) -> Any:
        child = pexpect.spawn(
            sys.executable, list(words), timeout=60, encoding="utf-8", dimensions=(33, 101), cwd=str(ROOT),
            # A program in the background of a script, as CI may start pytest, ignores SIGINT, and so do its children.
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
            env={**os.environ, "COLUMNS": "80", "LINES": "24", "PATH": f"{tmp_path / 'bin'}:{os.environ['PATH']}"},
        )  # fmt: skip
        spawned.append(child)
        return child

    yield start
    for child in spawned:
        child.close(force=True)


def typed(place: Path) -> list[tuple[str, str]]:
    return [(one.where, one.what) for one in trace.read(place / trace.FILE) if one.kind == trace.TYPED]


# -- the prompt -------------------------------------------------------------------------------------------------------


def test_console_and_dom0_are_handed_over_and_given_back(terminal: Callable[..., Any], tmp_path: Path) -> None:
    prompt = terminal("-c", SERVE, str(tmp_path))
    prompt.expect_exact("--- paused before the call of a case")
    prompt.expect(r"console 1: gone \(domain 1\) is gone: .*gone.console.log")
    prompt.expect_exact("console 2: alive (domain 2) runs")
    prompt.expect_exact("in another terminal: ssh x")
    prompt.expect_exact("a stub for domain 2")
    prompt.expect_exact("or: gdb -q -iex 'set osabi none' -ex 'target remote /run/gdb'")
    prompt.expect_exact("or: gdb -q -iex 'set osabi none' -ex 'target remote /run/lab'")
    prompt.expect("pause> ")
    prompt.sendline("console")
    prompt.expect_exact("fxh# ")
    prompt.send("echo $((6*7))x\x7f\r")
    prompt.expect_exact("echo $((6*7))x", timeout=60)  # the shell echoes
    prompt.expect(r"\b42\r")
    prompt.send("\x1d")
    prompt.expect("pause> ")
    prompt.sendline("console 1")
    prompt.expect("gone .domain 1. is gone")
    prompt.sendline("dom0")
    prompt.expect_exact("dom0 here# ")
    prompt.send("stty size; read -p 'Password: ' -s x; echo got ${#x}\r")
    prompt.expect_exact("33 101")
    prompt.expect_exact("Password: ")
    prompt.send("hunter2\r")
    prompt.expect_exact("got 7")
    prompt.send("\x04")
    prompt.expect("pause> ")
    prompt.send("\x04")
    prompt.expect_exact("budgets run again")
    prompt.expect_exact("the case goes on: 42")
    prompt.expect(pexpect.EOF)
    lines = typed(tmp_path)
    assert ("alive", "echo $((6*7))") in lines
    assert ("dom0", "***") in lines
    assert "hunter2" not in (tmp_path / trace.FILE).read_text()
    assert "42" in (tmp_path / "alive.console.log").read_text(), "the console is logged meanwhile"


def test_a_shell_that_does_not_come_back_is_reported(terminal: Callable[..., Any], tmp_path: Path) -> None:
    text = SERVE.replace("lent=session.lent", "lent=lambda: session.lent(2)")
    prompt = terminal("-c", text, str(tmp_path))
    prompt.expect("pause> ")
    prompt.sendline("console 2")
    prompt.expect_exact("fxh# ")
    prompt.send("exec sleep 100\r")
    prompt.expect_exact("exec sleep")
    prompt.send("\x1d")
    prompt.expect_exact("the shell's prompt", timeout=60)
    prompt.expect("pause> ")


def test_the_case_does_not_go_on_while_gdb_is_attached(terminal: Callable[..., Any], tmp_path: Path) -> None:
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "gdb").write_text('#!/bin/sh\ntrap "echo interrupted; exit" INT\necho "gdb $*"\nsleep 60 & wait\n')
    (tmp_path / "bin" / "gdb").chmod(0o755)
    (tmp_path / "attached").touch()
    prompt = terminal("-c", SERVE, str(tmp_path))
    prompt.expect("pause> ")
    prompt.sendline("gdb")
    prompt.expect_exact("gdb -q -iex set osabi none -ex target remote /run/gdb")
    prompt.send("\x03")
    prompt.expect_exact("interrupted")
    prompt.expect("pause> ")
    prompt.send("\x04")
    prompt.expect_exact("a debugger is still attached")
    (tmp_path / "attached").unlink()
    prompt.expect("pause> ")
    prompt.send("\x04")
    prompt.expect_exact("the case goes on: 42")


def test_a_case_without_a_guest_has_the_stub_of_its_host(terminal: Callable[..., Any], tmp_path: Path) -> None:
    prompt = terminal("-c", SERVE.replace("guests=guests", "guests=[]"), str(tmp_path))
    prompt.expect_exact("the case has not created a guest yet")
    prompt.expect_exact("gdb guest: a stub for domain None")
    prompt.expect("pause> ")
    prompt.sendline("console")
    prompt.expect_exact("the case has 0 guests")


def test_without_a_stub_the_prompt_says_why(terminal: Callable[..., Any], tmp_path: Path) -> None:
    (tmp_path / "refused").touch()
    prompt = terminal("-c", SERVE, str(tmp_path))
    prompt.expect_exact("no stub could be opened")
    for words, answer in (
        ("gdb", "there is no stub"),
        ("gdb lab", "no stub lab"),
        ("console 7", "no console 7"),
        ("console \u00b2", "no console \u00b2"),
        ("x", "unknown command x"),
        ("'", "closing"),
    ):
        prompt.expect("pause> ")
        prompt.sendline(words)
        prompt.expect(answer)
    prompt.expect("pause> ")
    prompt.send("\x03")
    prompt.expect_exact("KeyboardInterrupt")


# -- a run ------------------------------------------------------------------------------------------------------------


def results(reports: Path) -> dict[str, Any]:
    return {case["case"]: case for case in (json.loads(path.read_text()) for path in reports.glob("latest/cases/*/case.json"))}


@pytest.mark.parametrize(("wanted", "marked"), [("passes", "test_passes"), ("test_fails:on-failure", "test_fails")])
def test_a_paused_case_is_marked_and_not_in_the_history(
    wanted: str, marked: str, terminal: Callable[..., Any], tmp_path: Path
) -> None:
    with planted_suite(CASES) as suite:
        run = terminal(*FXH, "run", str(suite), "--type", "pv", "--reports", str(tmp_path / "reports"), "--pause", wanted)
        run.expect("--- paused (before the call|after the failure) of planted/test_planted.py::" + marked)
        run.expect_exact("the case has not created a guest yet")
        run.expect("pause> ")
        run.send("\x04")
        run.expect_exact("1 case had a pause for a person and is not judged")
        run.expect(pexpect.EOF)
    found = results(tmp_path / "reports")
    assert {name for name, case in found.items() if case["paused"]} == {marked}
    history = History(tmp_path / "reports" / FILE)
    assert {row.seen.case.partition("::")[2] for row in history.results()} == {"test_passes", "test_fails"} - {marked}
    report = json.loads((tmp_path / "reports" / "latest" / "report.json").read_text())
    assert {case["verdict"]["kind"] for case in report["cases"] if case["case"].endswith(marked)} == {"paused"}


def test_ctrl_c_ends_the_run(terminal: Callable[..., Any], tmp_path: Path) -> None:
    with planted_suite(CASES) as suite:
        run = terminal(*FXH, "run", str(suite), "--type", "pv", "--reports", str(tmp_path / "reports"), "--pause", "passes")
        run.expect("pause> ")
        run.send("\x03")
        run.expect_exact("the run was interrupted")
        run.expect(pexpect.EOF)
        run.close()
    assert run.exitstatus == 130
    assert not results(tmp_path / "reports")


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--pause", "pases"], "--pause pases: no selected case has this name\r\n  hint: the nearest are test_passes"),
        (["--pause", "passes", "-k", "fails"], "--pause passes: no selected case has this name"),
        (["--pause", "passes:later"], "cannot stop at 'later'"),
        (["--pause", "passes", "-n", "2"], "--pause with 2 workers: they have no terminal"),
    ],
)
def test_usage(words: list[str], says: str, terminal: Callable[..., Any], tmp_path: Path) -> None:
    with planted_suite(CASES) as suite:
        run = terminal(*FXH, "run", str(suite), "--type", "pv", "--reports", str(tmp_path / "reports"), *words)
        run.expect_exact(says)
        run.expect(pexpect.EOF)
        run.close()
    assert run.exitstatus == 2


# -- parts ------------------------------------------------------------------------------------------------------------


def test_the_place_is_after_the_last_colon() -> None:
    assert pause.parse("boot/test_boot::test_x") == ("boot/test_boot::test_x", pause.BEFORE_CALL)
    assert pause.parse("boot/test_boot::test_x:on-failure") == ("boot/test_boot::test_x", pause.ON_FAILURE)
    assert pause.parse("x") == ("x", pause.BEFORE_CALL)
    assert pause.parse("c[a:b]") == ("c[a:b]", pause.BEFORE_CALL)
    assert pause.parse("c[a:b]:on-failure") == ("c[a:b]", pause.ON_FAILURE)
    for text in (":on-failure", "x:", "x:on-failure:now", ""):
        with pytest.raises(UsageError):
            pause.parse(text)


def test_completion_knows_the_cases_and_their_places() -> None:
    assert "test_boots_to_login" in completion.pauses("test_boots")
    assert completion.pauses("test_boots_to_login:on") == ["test_boots_to_login:on-failure"]


def test_typed_lines_are_those_that_the_guest_gets() -> None:
    lines: list[str] = []
    inner = ReplayStream(b"", end="silence")
    stream = TypedStream(inner, lines.append)
    for key in b"una\x7fame\rwrong\x15right\rdropped\x03":
        stream.write(bytes([key]))
    stream.write(b"not ended")
    stream.close()
    assert lines == ["uname", "right", "not ended"]
    assert inner.written.startswith(b"una\x7fame\r"), "every byte reaches the guest"


@pytest.mark.parametrize(
    ("question", "secret"),
    [
        (b"\x1b[1mPassword:\x1b[0m ", True), (b"Pass\x1b[1mcode: \x1b[K", True), (b"Enter PIN for key: ", True), (b"token: ", True),
        (b"Enter passphrase for key 'k': ", True), (b"login: ", False), (b"spin: ", False),
    ],
)  # fmt: skip
def test_secrets_are_not_reported(question: bytes, secret: bool) -> None:
    lines: list[str] = []
    stream = TypedStream(ReplayStream(question, end="silence"), lines.append)
    stream.read(100, 1)
    stream.write(b"wrong\x15hunter2\r")
    assert lines == ["***" if secret else "hunter2"]


@pytest.mark.parametrize("error", [LabDead("QEMU ended"), OSError(5, "Input/output error")])
def test_a_pause_that_ends_with_an_error_only_warns(
    error: Exception, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def serve(*words: object) -> None:
        raise error

    monkeypatch.setattr(pause.pause_prompt, "serve", serve)
    attempt = SimpleNamespace(paused="", pause_seconds=0.0)
    config = SimpleNamespace(pluginmanager=SimpleNamespace(getplugin=lambda name: None))
    item: Any = SimpleNamespace(nodeid="x", config=config, stash={PAUSE: pause.ON_FAILURE, ATTEMPT: attempt, CASE: None})
    pause.on_failure(item, "planted")
    assert attempt.paused == pause.ON_FAILURE
    assert f"the pause ended: {error}" in caplog.text


def test_a_paused_result_has_no_verdict_and_blocks_no_other() -> None:
    now = Observation("r", "c", "cell", PASSED, paused="before-call")
    assert not now.judged
    assert judge(now, [Observation("q", "c", "cell", PASSED)]).kind == values.PAUSED


class Dom0:
    """Answers the probe for gdbsx."""

    name = "dom0"

    def __init__(self, answer: bytes) -> None:
        self._answer = answer

    def run(self, argv: list[str], deadline: object = None) -> Completed:
        return Completed(tuple(argv), 0, self._answer, b"")


def test_gdbsx_is_offered_if_xen_answers_it() -> None:
    assert debugger.gdbsx_stub(Dom0(b"gdbsx-off /usr/sbin/gdbsx\n"), 3, "root@xen1") == ()  # type: ignore[arg-type]
    assert debugger.gdbsx_stub(Dom0(b""), 3, "root@xen1") == ()  # type: ignore[arg-type]
    (stub,) = debugger.gdbsx_stub(Dom0(b"gdbsx /usr/sbin/gdbsx\n"), 3, "root@xen1")  # type: ignore[arg-type]
    assert stub.start == "ssh -L 9999:localhost:9999 root@xen1 /usr/sbin/gdbsx -a 3 64 9999"
    assert stub.line(Path("/k/kernel.debug")) == "gdb -q -iex 'set osabi none' /k/kernel.debug -ex 'target remote localhost:9999'"
    (local,) = debugger.gdbsx_stub(Dom0(b"gdbsx /usr/sbin/gdbsx\n"), 3, "local")  # type: ignore[arg-type]
    assert local.start == "/usr/sbin/gdbsx -a 3 64 9999"


def test_files_of_gdb_commands_are_quoted() -> None:
    words = Debugger("lab", "", "/run/gdb", more=(Path('/a b/x"y'),)).command(None)
    assert 'add-symbol-file "/a b/x\\"y"' in words


def test_a_command_without_symbols_names_no_file() -> None:
    assert Debugger("lab", "", "/run/gdb").command(None) == ("gdb", "-q", "-iex", "set osabi none", "-ex", "target remote /run/gdb")
