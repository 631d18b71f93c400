# SPDX-License-Identifier: BSD-2-Clause
"""The guest's client of xenstore: its messages, its relay in a real shell, and a terminal in the place of the device."""

from __future__ import annotations

import os
import pty
import shutil
import subprocess
import threading
import time
import tty
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from harness.guests import xenstore_client
from harness.guests.xenstore_client import RefusedWrite, XenstoreClient
from harness.xen import xenstore_wire
from harness.xen.xenstore_wire import Kind, Message

SHELLS = [shell for shell in ("dash", "busybox sh", "bash") if shutil.which(shell.split()[0])]


def test_a_message_is_header_and_body() -> None:
    # The numbers are those of xs_wire.h; the bytes were written by hand.
    packed = Message(Kind.WRITE, b"a\0b", 5, 7).packed()
    assert packed == bytes.fromhex("0b000000 05000000 07000000 03000000 610062")
    assert str(Message(99, b"x" * 50)) == f"type 99 {b'x' * 40 + b'...'!r}"


@given(st.lists(st.builds(Message, st.integers(0, 20), st.binary(max_size=50), st.integers(0, 1 << 31), st.integers(0, 9))))
def test_messages_in_a_row(messages: list[Message]) -> None:
    assert xenstore_wire.unpack(b"".join(message.packed() for message in messages)) == messages


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (bytes(15), "15 bytes of a message after 0"),
        (Message(2, b"abc").packed()[:-1], "18 bytes of a message"),
        (b"\xff" * 20, "type 4294967295"),
    ],
)
def test_a_torn_message_is_an_error(data: bytes, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        xenstore_wire.unpack(data)


@pytest.mark.parametrize("shell", SHELLS)
@pytest.mark.parametrize("body", [bytes(range(256)), b"%d\\n'\"$x", b"x" * 4096, b"a\0" + b"%" * 300 + bytes(300)])
def test_a_shell_prints_the_message(shell: str, body: bytes) -> None:
    message = Message(Kind.WRITE, body, 3)
    line = xenstore_client.command(message)
    assert subprocess.run([*shell.split(), "-c", line], capture_output=True, check=True).stdout == message.packed()
    assert len(line) < 4 * len(message.packed()) + 100


class Guest:
    """A guest whose shell is this machine's and whose device is ``device``."""

    scale = 1.0
    name = "g"

    def __init__(self, device: str) -> None:
        self.os = SimpleNamespace(xenstore_device=device)

    def run(self, command: str, check: bool = True) -> Any:
        done = subprocess.run(["sh", "-c", command], capture_output=True, text=True, check=check, timeout=20)
        return SimpleNamespace(text=done.stdout.removesuffix("\n"), status=done.returncode)

    def sh(self, command: str) -> str:
        return self.run(command).text

    def hang(self, message: str) -> Exception:
        return TimeoutError(message)


@pytest.fixture
def name() -> Iterator[str]:
    """A name for a connection, whose relay must end by itself and leave no file."""
    found = f"test-{os.getpid()}"
    yield found
    end = time.monotonic() + 10
    while (left := list(Path("/tmp").glob(f"fxh-xs-{found}*"))) and time.monotonic() < end:
        time.sleep(0.02)
    assert not left


class Xenstored:
    """Answers each request with the messages that ``answer`` returns for it, over a terminal."""

    def __init__(self, answer: Any) -> None:
        self.master, slave = pty.openpty()
        tty.setraw(slave)
        self.path, self._slave, self._answer = os.ttyname(slave), slave, answer
        self.seen: list[Message] = []
        self._ended = False
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    def _serve(self) -> None:
        data = b""
        while True:
            try:
                data += os.read(self.master, 8192)
                if self._ended:
                    return
                requests = xenstore_wire.unpack(data)
            except ValueError:
                continue
            except OSError:
                return
            data = b""
            for request in requests:
                self.seen.append(request)
                os.write(self.master, b"".join(message.packed() for message in self._answer(request)))

    def close(self) -> None:
        # A read in progress would keep the terminal open.
        self._ended = True
        os.write(self._slave, b"end")
        self._thread.join(10)
        os.close(self._slave)
        os.close(self.master)


def connect(answer: Any, name: str) -> tuple[Xenstored, XenstoreClient]:
    store = Xenstored(answer)
    return store, XenstoreClient(Guest(store.path), name)  # type: ignore[arg-type]


def test_requests_and_events(name: str) -> None:
    event = Message(Kind.WATCH_EVENT, b"data/x\0token\0")

    def answer(request: Message) -> list[Message]:
        own = Message(request.kind, b"OK\0", request.request, request.transaction)
        return [event, own] if request.kind == Kind.WATCH else [own]

    store, client = connect(answer, name)
    assert client.ask(Kind.WRITE, "data/x", b"\0\xff%") == Message(Kind.WRITE, b"OK\0", 1)
    assert client.ask(Kind.WATCH, "data/x", "token").words == ("OK",)
    assert client.event() == event
    assert client.ask(Kind.TRANSACTION_END, "T", transaction=9).transaction == 9
    assert [one.body for one in store.seen] == [b"data/x\0\0\xff%", b"data/x\0token\0", b"T\0"]
    client.close()
    store.close()


def test_an_answer_to_another_request_is_an_error(name: str) -> None:
    store, client = connect(lambda request: [Message(request.kind, b"OK\0", request.request + 1)], name)
    with pytest.raises(AssertionError, match=r"request 1, READ .* got READ b'OK\\x00' for request 2"):
        client.ask(Kind.READ, "data/x")
    client.close()
    store.close()


def test_no_answer_is_a_hang(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Guest, "scale", 0.05)
    store, client = connect(lambda request: [], name)
    with pytest.raises(TimeoutError, match="has nothing to read after 2 s"):
        client.ask(Kind.READ, "data/x")
    client.close()
    store.close()


def test_a_device_that_refuses_the_write(name: str) -> None:
    client = XenstoreClient(Guest("/dev/full"), name)  # type: ignore[arg-type]
    with pytest.raises(RefusedWrite):
        client.ask(Kind.WRITE, "data/x", "1")
    client.close()


def test_a_device_that_cannot_be_opened(name: str) -> None:
    with pytest.raises(AssertionError, match="a program cannot open /nonexistent"):
        XenstoreClient(Guest("/nonexistent/device"), name)  # type: ignore[arg-type]


def test_a_read_that_ends_within_a_message(name: str) -> None:
    event = Message(Kind.WATCH_EVENT, b"data/x\0token\0").packed()

    class Torn(Message):
        def packed(self) -> bytes:
            return self.body

    pieces = [[Torn(0, event[:20])], [Torn(0, event[20:]), Message(Kind.READ, b"1", 2)]]
    store, client = connect(lambda request: pieces.pop(0) if pieces else [], name)
    client._exchange(xenstore_client.command(Message(Kind.READ, b"data/y\0", 1)))
    assert client.events == []
    assert client._exchange(xenstore_client.command(Message(Kind.READ, b"data/x\0", 2))) == [
        Message(Kind.WATCH_EVENT, b"data/x\0token\0"),
        Message(Kind.READ, b"1", 2),
    ]
    client.close()
    store.close()
