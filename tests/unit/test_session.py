# SPDX-License-Identifier: BSD-2-Clause
"""Tests the session with real shells on a real pty: sh, and csh as the login shell if it is installed."""

from __future__ import annotations

import shlex
import shutil
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from played import LINUX

from harness.console import session as sessions
from harness.console.reader import ConsoleReader
from harness.console.session import SERIAL_PORT, TTY, ReaderSpawn, Session
from harness.deadline import Deadline
from harness.errors import DeadlineExpired, ExitCode, GuestCommandFailed, GuestDied, InfrastructureError, LoggedOut, UsageError
from harness.transport import Stream
from harness.transport.local import LocalTransport
from harness.transport.replay import ReplayStream

# Like getty and login: prompt for a user, refuse an unknown one, and start a shell with a coloured prompt.
LOGIN = """
while :; do printf 'control login: '; read -r who; [ "$who" = root ] && break; echo 'Login incorrect'; done
printf '\\0337\\033[r\\033[999;999H\\033[6n'; IFS= read -r -d R answer 2>/dev/null || read -r answer
PS1='\\033[31mroot@here\\033[0m:~ # ' exec %s -i
"""


class Returns:
    """A console that adds a CR after each LF, like that of an i386 PV FreeBSD."""

    def __init__(self, stream: Stream) -> None:
        self._stream = stream
        self.write, self.close = stream.write, stream.close

    def read(self, size: int, timeout: float | None = None) -> bytes:
        return self._stream.read(size, timeout).replace(b"\n", b"\n\r")


@pytest.fixture(params=["sh", "csh", "sh on i386 PV"])
def session(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Session]:
    shell, _, old = request.param.partition(" on ")
    if not shutil.which(shell):
        pytest.skip(f"no {shell} on this machine; apt-get install {shell}")
    stream = LocalTransport().open(["bash", "-c", LOGIN % shell], pty=True)
    stream = Returns(stream) if old else stream
    reader = ConsoleReader(stream, tmp_path / "c.log", tables=LINUX).start()
    yield Session(reader).login("root", deadline=Deadline(60))
    reader.close()


def test_output_and_status_are_exact(session: Session) -> None:
    assert session.run("echo hello").text == "hello"
    assert session.run("printf 'a\\n\\n b\\t \\n'").text == "a\n\n b\t "
    assert session.run("true").text == ""
    out = session.run("echo to stderr >&2; exit 3", check=False)
    assert (out.status, out.text) == (3, "to stderr")
    assert session.run("seq 1 5000").text == "\n".join(map(str, range(1, 5001)))
    assert session.run("printf 'one\\r\\ntwo'").text == "one\r\ntwo"


def test_a_failing_command_raises_its_status_and_output(session: Session) -> None:
    with pytest.raises(GuestCommandFailed, match=r"'false; ls /none' failed with exit status [12]"):
        session.run("false; ls /none")


def test_a_kernel_message_in_the_middle_is_noticed(session: Session) -> None:
    """Another process writes to the terminal during the output. The session reads the output again until it is intact."""
    session.run(
        "tty=$(tty); (for i in 1 2 3 4 5; do sleep 0.02; echo 'xn0: link state changed' > $tty; done) >/dev/null 2>&1 & true"
    )
    text = session.run("seq 1 30000").text
    assert text == "\n".join(map(str, range(1, 30001)))


def test_a_short_output_among_kernel_messages(session: Session) -> None:
    session.run("tty=$(tty); (for i in $(seq 60); do sleep 0.01; echo xn0: up > $tty; done) >/dev/null 2>&1 & true")
    wanted = "\n".join(map(str, range(1, 101)))
    assert [session.run("seq 1 100").text for _ in range(30)] == [wanted] * 30


def test_earlier_input_is_no_part_of_a_command(session: Session) -> None:
    """For example a late answer to a query of the login shell."""
    session.reader.write(b"\x1b[50;200R")
    assert session.run("echo alive").text == "alive"


def test_a_quoted_panic_in_output_is_no_death(session: Session) -> None:
    """The output of dmesg may contain the panic of the previous boot."""
    text = "panic: at the disco\ncpuid = 0\nUptime: 1s\nRebooting..."
    assert session.run(f"printf '{text}\\n'").text == text.replace("\\n", "\n")
    assert session.run("echo alive").text == "alive"
    assert session.reader.death is None


def test_a_death_during_a_command_ends_it(session: Session, tmp_path: Path) -> None:
    go = tmp_path / "go"
    panic = f"until [ -e {go} ]; do sleep 0.05; done; printf 'panic: real\\ncpuid = 0\\n' > $tty; kill -STOP $$"
    session.run(f"tty=$(tty); ({panic}) >/dev/null 2>&1 & true")
    begun = time.monotonic()
    with pytest.raises(GuestDied, match="real"):
        session.run(f"touch {go}; sleep 90", Deadline(90))
    assert time.monotonic() - begun < 60, "well before the deadline of 90 s"


def test_a_shell_that_was_killed_is_no_hang(session: Session, monkeypatch: pytest.MonkeyPatch) -> None:
    """A kernel without memory also kills login. The session reports it at once, and a new login works."""
    monkeypatch.setattr(sessions, "_RETRY_SHELL", 0.5)
    session.start(f"exec bash -c {shlex.quote(LOGIN % 'sh')}")
    begun = time.monotonic()
    with pytest.raises(LoggedOut, match="asks for a login instead of an answer to 'echo alive'") as caught:
        session.run("echo alive", Deadline(90))
    assert time.monotonic() - begun < 60
    assert caught.value.exit_code == ExitCode.PRODUCT
    assert session.login("root", deadline=Deadline(60)).run("echo alive").text == "alive"


def test_control_characters_are_refused(session: Session) -> None:
    with pytest.raises(UsageError):
        session.run("echo a\rb")


class Small:
    """A console that buffers 384 bytes until the guest reads them and drops the rest, like an emulated serial port."""

    KEEPS = 384

    def __init__(self, stream: Stream) -> None:
        self._stream = stream
        self.close = stream.close
        self._written = 0
        self.lost = 0

    def write(self, data: bytes) -> None:
        kept = data[: self.KEEPS - self._written]
        self._written += len(kept)
        self.lost += len(data) - len(kept)
        self._stream.write(kept)

    def read(self, size: int, timeout: float | None = None) -> bytes:
        data = self._stream.read(size, timeout)
        # The guest has answered, so it has read the earlier input.
        self._written = 0 if data else self._written
        return data


class Torn:
    """A console on which a message of another CPU lies in the first ``times`` markers of the end of an output."""

    def __init__(self, stream: Stream, times: int) -> None:
        self._stream, self._times, self._rest = stream, times, b""
        self.close, self.write = stream.close, stream.write

    def read(self, size: int, timeout: float | None = None) -> bytes:
        data = self._rest + self._stream.read(size, timeout)
        # A part of a marker waits for its rest.
        kept = next((n for n in range(len(MARKER) - 1, 0, -1) if data.endswith(MARKER[:n])), 0)
        data, self._rest = data[: len(data) - kept], data[len(data) - kept :]
        while self._times and MARKER in data:
            data = data.replace(MARKER, b"fxh-xn0: backend features:end-", 1)
            self._times -= 1
        return data


MARKER = b"fxh-end-"


def test_a_damaged_end_of_an_output_is_no_hang(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sessions, "_RETRY_SHELL", 0.5)
    torn = Torn(LocalTransport().open(["bash", "-c", LOGIN % "sh"], pty=True), 2)
    reader = ConsoleReader(torn, tmp_path / "c.log", tables=LINUX).start()
    try:
        session = Session(reader).login("root", deadline=Deadline(20))
        assert session.run("echo alive; sleep 2", Deadline(60)).text == "alive"
        assert torn._times == 0
        assert session.run("echo again").text == "again"
    finally:
        reader.close()


@pytest.mark.parametrize("buffer_size", [SERIAL_PORT, TTY])
def test_a_long_command_on_a_console_with_a_small_buffer(tmp_path: Path, buffer_size: int) -> None:
    small = Small(LocalTransport().open(["bash", "-c", LOGIN % "sh"], pty=True))
    reader = ConsoleReader(small, tmp_path / "c.log", tables=LINUX).start()
    try:
        session = Session(reader, buffer_size).login("root", deadline=Deadline(20))
        long = 'for i in 1 2; do echo "it\'s $i"; done\n' * 18
        if buffer_size == SERIAL_PORT:
            assert session.run(long).text == "\n".join(["it's 1", "it's 2"] * 18)
            quotes = "'\"" * 300
            assert session.run(f"cat <<'END'\n{quotes}\nEND").text == quotes
            assert (session.run("exit 7", check=False).status, small.lost) == (7, 0)
        else:
            with pytest.raises(DeadlineExpired):
                session.run(long, Deadline(2))
            assert small.lost
    finally:
        reader.close()


def test_start_types_a_long_command_completely(session: Session, tmp_path: Path) -> None:
    session.start(f"echo {'x' * 2000} >{tmp_path}/said")
    assert session.run(f"cat {tmp_path}/said").text == "x" * 2000


def test_a_command_of_any_length_is_typed(session: Session) -> None:
    text = "x'\"$y \\" * 700
    assert session.run(f"cat <<'END'\n{text}\nEND").text == text
    out = session.run(f": {'x' * 2000}; exit 5", check=False)
    assert (out.status, out.text) == (5, "")


def test_a_late_answer_is_no_part_of_the_next_output(session: Session, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a slow machine, the prompt after a repeated query to a restored guest appeared in the next command's output."""
    monkeypatch.setattr(sessions, "_RETRY_RESUMED", 0.1)
    session.start("sleep 1")
    session.resume(Deadline(20))
    said = session.reader.offset
    time.sleep(0.5)
    assert session.reader.offset == said, f"after it there came {session.reader.since(said)!r}"


class Slow:
    """A console that writes 16 single bytes a second, like the emulated serial port of a busy guest."""

    def __init__(self, stream: Stream) -> None:
        self._stream = stream
        self.close = stream.close
        self.slow = False
        self.typed: list[bytes] = []

    def write(self, data: bytes) -> None:
        self.typed.append(data)
        self.slow = self.slow or data.startswith(b"exec")
        self._stream.write(data)

    def read(self, size: int, timeout: float | None = None) -> bytes:
        if not self.slow:
            return self._stream.read(size, timeout)
        time.sleep(0.06)
        return self._stream.read(1, timeout)


def test_no_input_while_the_console_still_echoes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The echo takes longer than the wait for an answer, and each further line would delay it more."""
    monkeypatch.setattr(sessions, "_RETRY_SHELL", 2.5)
    slow = Slow(LocalTransport().open(["bash", "-c", LOGIN % "sh"], pty=True))
    reader = ConsoleReader(slow, tmp_path / "c.log", tables=LINUX).start()
    try:
        Session(reader).login("root", deadline=Deadline(60))
        assert [line[:8] for line in slow.typed if line.startswith((b"exec", b"set +o"))] == [b"exec env", b"set +o e"]
    finally:
        reader.close()


def test_wrong_password(tmp_path: Path) -> None:
    script = "printf 'x login: '; read -r a; printf 'Password:'; read -r b; echo; echo 'Login incorrect'; sleep 5"
    reader = ConsoleReader(LocalTransport().open(["bash", "-c", script], pty=True), tmp_path / "c", tables=LINUX).start()
    with pytest.raises(InfrastructureError, match="refused"):
        Session(reader).login("root", "secret", Deadline(10))
    reader.close()


def test_an_expired_deadline_names_the_condition(tmp_path: Path) -> None:
    reader = ConsoleReader(ReplayStream(b"login: ", end="silence"), tmp_path / "c", tables=LINUX).start()
    with pytest.raises(InfrastructureError, match="a login on the console"):
        Session(reader).login("root", deadline=Deadline(1))
    reader.close()


@pytest.mark.parametrize("at", range(1, 12))
def test_a_cursor_query_is_answered_once(tmp_path: Path, at: int) -> None:
    """It also finds a prompt after escape sequences."""
    data = b"\x1b[999;999H\x1b[6n\x1b[1mbox login: \x1b[0m"
    for chunks in ([data[: at + 8], data[at + 8 :]], [data[n : n + 1] for n in range(len(data))]):
        stream = ReplayStream(b"", end="silence")
        reader = ConsoleReader(stream, tmp_path / "console.log", tables=LINUX)
        spawn = ReaderSpawn(reader)
        spawn.strips_escapes = True
        seen = b""
        for chunk in chunks:
            reader._take(chunk)
            seen += spawn.read_nonblocking(1 << 16, 1)
        assert seen.strip(b"\n") == b"box login: "
        assert stream.written == b"\x1b[50;200R"
        reader.close()
        (tmp_path / "console.log").unlink()


def test_a_busy_shell_that_was_lent_is_quiet_again_afterwards(session: Session, tmp_path: Path) -> None:
    go = tmp_path / "go"
    session.start(f"until [ -e {go} ]; do sleep 0.1; done")
    with session.lent(6.0) as problem:
        assert problem
        go.touch()
        time.sleep(1)
    assert session.run("echo hello").text == "hello"
