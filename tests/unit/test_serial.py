# SPDX-License-Identifier: BSD-2-Clause
"""The serial console of a host: its log, other readers, and crashes. Sockets, ptys and processes are real."""

from __future__ import annotations

import contextlib
import errno
import os
import pty
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from harness.config.schema import HostConfig
from harness.console.hypervisor import crash
from harness.deadline import ConditionNotMet, Deadline
from harness.errors import TransportError
from harness.hosts import equipment, health_check, serial
from harness.hosts.health_check import HealthCheck
from harness.hosts.serial import SerialError, SerialLog
from harness.transport import Stream

PANIC = """(XEN) [   54.859001] ----[ Xen-4.20.5-pre  x86_64  debug=n  Not tainted ]----
(XEN) [   54.859377] Xen call trace:
(XEN) [   54.859388]    [<ffff82d04024ff60>] R dump_runq+0/0x40
(XEN) [   54.860001] ****************************************
(XEN) [   54.860002] Panic on CPU 0:
(XEN) [   54.860003] FATAL TRAP: vector = 6 (invalid opcode)
(XEN) [   54.860004] ****************************************
(XEN) [   54.860005] Reboot in five seconds...
"""


@pytest.mark.parametrize(
    ("text", "found"),
    [
        (PANIC, "Panic on CPU 0: FATAL TRAP: vector = 6 (invalid opcode)"),
        (
            "(XEN) Hardware Dom0 crashed: 'noreboot' set - not rebooting.\n",
            "Hardware Dom0 crashed: 'noreboot' set - not rebooting.",
        ),
        ("(XEN) [2026-12-01 04:50:00] Hardware Dom0 halted: halting machine\n", "Hardware Dom0 halted: halting machine"),
        (
            "[    9.1] Kernel panic - not syncing: sysrq triggered crash\n(XEN) Hardware Dom0 crashed: rebooting machine in 5 seconds.\n",
            "Kernel panic - not syncing: sysrq triggered crash",
        ),
        ("(XEN) Domain 0 (vcpu#0) crashed on cpu#0:\n", "Domain 0 (vcpu#0) crashed on cpu#0"),
        ("(XEN) Domain 12 (vcpu#0) crashed on cpu#0:\n", ""),
        ("(XEN) Domain 2 reported crashed by domain 0 on cpu#0:\n", ""),
        # A guest's words on the console of Xen.
        ("(d3) Kernel panic - not syncing: x\n(XEN) [   1.5] (d3) (XEN) Panic on CPU 0:\n", ""),
        # console_timestamps=raw
        ("(XEN) [000000123456789a] (d3) Kernel panic - not syncing: x\n", ""),
        ("(XEN) [000000123456789a] Hardware Dom0 crashed: 'noreboot' set\n", "Hardware Dom0 crashed: 'noreboot' set"),
        ("(d0) x\nfxh: dom0 ready\n", ""),
        ("", ""),
    ],
)
def test_crashes_of_the_host_but_not_of_guests(text: str, found: str) -> None:
    assert crash(text.encode()) == found
    assert crash(text.replace("\n", "\r\n").encode() + b"\xff\x1b[2J") == found


class Line:
    """A serial line, which the test speaks on."""

    def __init__(self) -> None:
        self.near: list[socket.socket] = []

    def connect(self) -> Stream:
        near, far = socket.socketpair()
        self.near.append(near)
        return serial.DescriptorStream(far.detach())

    def say(self, data: bytes) -> None:
        self.near[-1].sendall(data)

    def hang_up(self) -> None:
        self.near[-1].close()


@pytest.fixture(autouse=True)
def fast(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("FXH_STORE", str(tmp_path))
    monkeypatch.setattr(serial, "_REFUSAL", 0.3)
    monkeypatch.setattr(serial, "_AGAIN", 0.05)


@pytest.fixture
def line() -> Line:
    return Line()


@pytest.fixture
def log(line: Line, tmp_path: Path) -> Iterator[SerialLog]:
    found = SerialLog(tmp_path, "hosts.xen1.serial", line.connect)
    found.start()
    yield found
    found.stop()


def wait_for(path: Path, words: bytes) -> None:
    def seen() -> None:
        if not path.exists() or words not in path.read_bytes():
            raise ConditionNotMet("not yet")

    Deadline(60).wait(f"{words!r}", seen, 0.02)


def test_a_console_is_logged_and_opened_again(line: Line, log: SerialLog) -> None:
    line.say(b"one\n")
    wait_for(log.path, b"one\n")
    begin = log.end
    line.hang_up()
    Deadline(60).wait("the second connection", lambda: _at_least(line, 2), 0.02)
    line.say(b"two\n")
    wait_for(log.path, b"two\n")
    assert log.since(begin, 100) == b"two\n"
    assert log.since(begin, 2) == b"o\n"


def _at_least(line: Line, count: int) -> None:
    if len(line.near) < count:
        raise ConditionNotMet("not yet")


def test_one_process_reads_and_another_continues(line: Line, log: SerialLog, tmp_path: Path) -> None:
    second = SerialLog(tmp_path, "hosts.xen1.serial", line.connect)
    second.start()
    assert len(line.near) == 1, "a serial line has one reader"
    line.say(b"one\n")
    wait_for(second.path, b"one\n")
    log.stop()
    Deadline(60).wait("the second reader", lambda: _at_least(line, 2), 0.02)
    line.say(b"two\n")
    wait_for(second.path, b"one\ntwo\n")
    second.stop()


def test_a_long_log_is_replaced(line: Line, log: SerialLog, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(serial, "_LARGEST", 100)
    line.say(b"x" * 101)
    Deadline(60).wait("the old log", lambda: _exists(log.path.with_suffix(".old")), 0.02)
    line.say(b"new\n")
    wait_for(log.path, b"new\n")
    assert log.since(101, 50) == b"new\n"


GUEST = "(XEN) (d3) Kernel panic - not syncing: x\n"


def test_a_line_without_its_begin_is_not_searched(tmp_path: Path) -> None:
    """The words of a guest are those of the host if only the prefix is missing."""
    found = SerialLog(tmp_path, "k", Line().connect)
    found.path.write_text(GUEST * 2)
    whole = len(GUEST)
    for begin in (0, 1, 6, whole - 1, whole, whole + 1, whole + 9):
        assert found.crash(begin, begin) == "", begin
    found.path.write_text(PANIC)
    lines = [0, *(n + 1 for n in range(len(PANIC) - 1) if PANIC[n] == "\n")]
    panic = next(n for n in lines if PANIC[n:].startswith("(XEN) [   54.860002] Panic"))
    for begin in (0, lines[1], panic):
        assert found.crash(begin, begin) == "Panic on CPU 0: FATAL TRAP: vector = 6 (invalid opcode)", begin


def test_the_first_line_of_a_new_file_may_have_begun_in_the_old_one(tmp_path: Path) -> None:
    found = SerialLog(tmp_path, "k", Line().connect)
    found.path.with_suffix(".old").write_text(GUEST[:9])
    found.path.write_text(GUEST[9:])
    assert found.crash(0, 1) == ""
    found.path.with_suffix(".old").write_text("x\n")
    found.path.write_text("(XEN) Panic on CPU 0:\n")
    assert found.crash(0, 1) == "Panic on CPU 0"


def test_a_full_disk_is_no_end(
    line: Line, log: SerialLog, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    real = SerialLog._write

    def full(self: SerialLog, data: bytes) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(SerialLog, "_write", full)
    for _ in range(3):
        line.say(b"lost\n")
        time.sleep(0.1)
    Deadline(60).wait("the warning", lambda: _contains(caplog.text, "No space left on device"), 0.02)
    monkeypatch.setattr(SerialLog, "_write", real)
    line.say(b"kept\n")
    wait_for(log.path, b"kept\n")
    assert caplog.text.count("No space left on device") == 1
    assert b"hosts.xen1.serial" not in log.path.read_bytes()


def _contains(text: str, words: str) -> None:
    if words not in text:
        raise ConditionNotMet("not yet")


def test_a_console_whose_log_cannot_be_written(line: Line, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    log = SerialLog(tmp_path, "hosts.xen1.serial", line.connect)
    log.path.mkdir()
    with pytest.raises(SerialError, match=r"hosts\.xen1\.serial: cannot write .*serial\.log: Is a directory\n  hint: free space"):
        log.start()
    line.near[-1].settimeout(5)
    assert line.near[-1].recv(1) == b"", "the console is closed"
    log.path.rmdir()
    log.start()
    log.stop()
    monkeypatch.setattr(SerialLog, "_become_reader", lambda self: (tmp_path / "none" / "lock").touch())
    with pytest.raises(SerialError, match=r"hosts\.xen1\.serial: cannot lock .*serial\.lock: No such file"):
        log.start()


def test_a_reader_that_fails_lets_another_process_read(line: Line, log: SerialLog, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(threading, "excepthook", lambda args: None)
    monkeypatch.setattr(SerialLog, "_try_to_write", lambda self, data: 1 // 0)
    line.say(b"x")
    assert log._thread is not None
    log._thread.join(10)
    assert log._become_reader()


def _exists(path: Path) -> None:
    if not path.exists():
        raise ConditionNotMet("not yet")


def config(*words: str) -> HostConfig:
    return HostConfig("xen1", name="xen1", serial=words)


def test_a_command_that_ends_at_once_has_another_reader(monkeypatch: pytest.MonkeyPatch) -> None:
    """As ipmitool does."""
    monkeypatch.setattr(serial, "_REFUSAL", 30.0)
    busy = config("sh", "-c", "echo SOL payload already active on another session; exit 1")
    found = serial.of(busy)
    assert found is not None
    with pytest.raises(SerialError, match=r"hosts\.xen1\.serial closed at once: SOL payload already active") as caught:
        found.start()
    assert "end the other reader" in caught.value.hint
    checks = {check.name: check for check in equipment.examine(busy)}
    assert checks["serial"].status == "fail"
    with contextlib.closing(serial.open_console(config("sh", "-c", "echo hello; sleep 20"))) as stream:
        assert stream.read(100, 10) == b"hello\r\n"


@pytest.mark.parametrize("program", ["sh", "/none/ipmitool"])
def test_an_error_shows_no_argument(program: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(serial, "_REFUSAL", 30.0)
    script = tmp_path / "sol"
    script.write_text("echo wrong password: $2\nexit 1\n")
    found = serial.of(config(program, str(script), "-P", "hunter2"))
    assert found is not None
    with pytest.raises(SerialError, match=r"\*\*\*") as caught:
        found.start()
    assert "hunter2" not in str(caught.value)


def test_a_command_can_end_its_session(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """ipmitool deactivates SOL on SIGTERM."""
    monkeypatch.setattr(serial, "_GRACE", 30.0)
    script = f"trap 'echo ended > {tmp_path}/end; exit' TERM; echo ready; while :; do sleep 0.05; done"
    stream = serial.open_console(config("sh", "-c", script))
    assert stream.read(100, 10) == b"ready\r\n"
    stream.close()
    assert (tmp_path / "end").read_text() == "ended\n"


def test_a_command_that_ignores_the_end_is_killed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(serial, "_GRACE", 0.2)
    stream = serial.open_console(config("sh", "-c", "trap '' TERM; echo $$; while :; do sleep 0.05; done"))
    pid = int(stream.read(100, 10))
    stream.close()
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


def test_a_device_with_another_reader() -> None:
    ours, theirs = pty.openpty()
    name = os.ttyname(theirs)
    os.close(theirs)
    with contextlib.closing(serial.open_console(config(name))) as stream:
        os.write(ours, b"(XEN) hello\n")
        assert stream.read(100, 5) == b"(XEN) hello\n"
    code = "import sys; f = open(sys.argv[1], 'rb', 0); print('open', flush=True); sys.stdin.read()"
    with subprocess.Popen([sys.executable, "-c", code, name], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as reader:
        assert reader.stdout is not None
        assert reader.stdout.readline() == b"open\n"
        with pytest.raises(
            SerialError, match=rf"hosts\.xen1\.serial: {name} has another reader: python\S* \(pid {reader.pid}\)"
        ) as caught:
            serial.open_console(config(name))
        assert "end that program" in caught.value.hint
    os.close(ours)


def test_sockets(tmp_path: Path) -> None:
    for family, address, words in (
        (socket.AF_UNIX, str(tmp_path / "s"), "unix:{}"),
        (socket.AF_INET, ("127.0.0.1", 0), "tcp:{}:{}"),
    ):
        with socket.socket(family) as server:
            server.bind(address)
            server.listen()
            name = server.getsockname()
            where = words.format(*(name if isinstance(name, tuple) else (name,)))
            with contextlib.closing(serial.open_console(config(where))) as stream:
                peer, _ = server.accept()
                assert isinstance(stream, serial.DescriptorStream)
                with socket.socket(fileno=os.dup(stream._descriptor)) as ours:
                    assert ours.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE) == (family == socket.AF_INET)
                peer.sendall(b"x")
                assert stream.read(10, 5) == b"x"
                peer.close()
        with pytest.raises(SerialError, match=r"hosts\.xen1\.serial: cannot open .* refused"):
            serial.open_console(config(where))


# -- the health check -------------------------------------------------------------------------------------------------


class Connection:
    """A connection whose host stops answering."""

    name = "xen1"

    def __init__(self) -> None:
        self.hangs, self.closed = threading.Event(), threading.Event()

    def ping(self) -> None:
        if self.hangs.is_set():
            self.closed.wait(20)
            raise TransportError("closed")

    def close(self) -> None:
        self.closed.set()


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in (("HEARTBEAT", 0.05), ("_INTERVAL", 0.05), ("_REPORT", 0.05)):
        monkeypatch.setattr(health_check, name, value)


@pytest.mark.usefixtures("quick")
def test_a_host_without_a_heartbeat_is_lost() -> None:
    connection = Connection()
    found = HealthCheck(connection, None, silence=1.0)  # type: ignore[arg-type]
    time.sleep(2)
    assert not found.lost
    connection.hangs.set()
    assert connection.closed.wait(20), "every wait on the connection has to end"
    assert found.lost == "xen1: no heartbeat for 1 s"


@pytest.mark.usefixtures("quick")
def test_a_crash_on_the_serial_console_is_noticed_once_for_each_boot(line: Line, log: SerialLog) -> None:
    first = Connection()
    found = HealthCheck(first, log)  # type: ignore[arg-type]
    line.say(PANIC[:200].encode())
    time.sleep(0.3)
    assert not found.lost
    line.say(PANIC[200:].encode())
    assert first.closed.wait(20)
    assert found.lost == "xen1: its serial console reports: Panic on CPU 0: FATAL TRAP: vector = 6 (invalid opcode)"
    assert found.serial_output(1000).startswith(b"(XEN) [   54.859001]")
    second = Connection()
    again = HealthCheck(second, log)  # type: ignore[arg-type]
    line.say(b"(XEN) Xen version 4.20\n")
    wait_for(log.path, b"4.20\n")
    time.sleep(0.3)
    assert not again.lost, "a crash before this lease does not count"
    again.stop()
