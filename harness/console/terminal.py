# SPDX-License-Identifier: BSD-2-Clause
"""Attach the user's terminal to a byte stream; Ctrl-] detaches."""

from __future__ import annotations

import os
import re
import select
import socket
import sys
import termios
import threading
import time
import tty
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from harness.console.reader import ConsoleReader
from harness.console.text import decode
from harness.errors import InfrastructureError, TransportError
from harness.safetext import ESCAPE, plain
from harness.transport import Stream
from harness.transport.local import DescriptorStream

_ESCAPE = b"\x1d"  # Ctrl-]
# Keys that edit a line: end it, delete a character, delete or drop the line, drop it with its question.
_ENTER, _ERASE, _DROP, _CANCEL = b"\r\n", b"\x7f\x08", b"\x15\x03", 0x03
# Password:     root@host's password:     Enter passphrase for key '/root/.ssh/id':     Passcode:     PIN for token:
_SECRET_QUESTION = re.compile(rb"(?:pass(?:word|wd|phrase|code)|\bPIN\b|token|secret)[^\r\n]{0,200}:\s*\Z", re.IGNORECASE)
_CONTROL = re.compile(ESCAPE.encode())
# Bytes of the output that may contain a question, and of a typed line that is reported.
_QUESTION, _LINE = 1024, 4096


@contextmanager
def raw_terminal() -> Iterator[bool]:
    """Put the terminal into raw mode and restore it afterwards. Yields whether stdin is a terminal."""
    if not sys.stdin.isatty():
        yield False
        return
    descriptor = sys.stdin.fileno()
    before = termios.tcgetattr(descriptor)
    try:
        tty.setraw(descriptor)
        yield True
    finally:
        termios.tcsetattr(descriptor, termios.TCSADRAIN, before)


def attach(stream: Stream) -> None:
    """Connect stdin and stdout to ``stream`` until it ends or the user types Ctrl-], and close it.

    Without a terminal the output has no control sequences. Raises TransportError if reading the stream fails.
    """
    ended = threading.Event()
    errors: list[TransportError] = []

    def copy_output() -> None:
        while not ended.is_set():
            try:
                data = stream.read(1 << 16, 0.2)
            except TimeoutError:
                continue
            except TransportError as exc:
                errors.append(exc)
                data = b""
            if not data:
                ended.set()
                return
            sys.stdout.buffer.write(data if interactive else plain(decode(data)).encode())
            sys.stdout.buffer.flush()

    with raw_terminal() as interactive:
        if interactive:
            sys.stderr.write("attached; Ctrl-] detaches\r\n")
        copier = threading.Thread(target=copy_output, daemon=True)
        copier.start()
        try:
            while not ended.is_set():
                ready, _, _ = select.select([sys.stdin], [], [], 0.2)
                if not ready:
                    continue
                typed = os.read(sys.stdin.fileno(), 4096)
                if not typed or _ESCAPE in typed:
                    break
                stream.write(typed)
            if not interactive:
                ended.wait(2.0)  # stdin was a pipe that has ended: leave time for the answer
        finally:
            stream.close()
            ended.set()
            copier.join(1.0)
    if errors:
        raise errors[0]


def attach_socket(path: Path) -> None:
    """Attach the terminal to a Unix socket. Raises InfrastructureError if nothing listens there."""
    link = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        link.connect(str(path))
    except OSError as exc:
        raise InfrastructureError(f"{path}: {exc.strerror}", hint="check that the lab is up: fxh lab list") from exc
    attach(DescriptorStream(link.detach()))


class ReaderStream:
    """The console log of a reader as a stream, from the offset ``position`` on. The reader continues to log, and to detect deaths."""

    def __init__(self, reader: ConsoleReader, position: int = 0) -> None:
        self._reader, self._position = reader, position

    def read(self, size: int, timeout: float | None = None) -> bytes:
        end = time.monotonic() + (timeout or 0)
        while True:
            data = self._reader.since(self._position, size)
            if data:
                self._position += len(data)
                return data
            if self._reader.closed:
                return b""
            if time.monotonic() >= end:
                raise TimeoutError
            time.sleep(0.01)

    def write(self, data: bytes) -> None:
        self._reader.write(data)

    def close(self) -> None:
        """Do nothing: the reader belongs to the guest."""


class TypedStream:
    """Passes ``stream`` on, and calls ``report`` with each line that is typed into it.

    The answer to a question for a password is reported as ``***``. Editing keys are applied as a terminal does; other control
    characters stay in the line.
    """

    def __init__(self, stream: Stream, report: Callable[[str], None]) -> None:
        self._stream, self._report = stream, report
        self._line = bytearray()
        self._shown = b""
        self._secret = False

    def read(self, size: int, timeout: float | None = None) -> bytes:
        data = self._stream.read(size, timeout)
        self._shown = (self._shown + data)[-_QUESTION:]
        return data

    def write(self, data: bytes) -> None:
        for key in data:
            if not self._line:
                self._secret = self._secret or _SECRET_QUESTION.search(_CONTROL.sub(b"", self._shown)) is not None
            if key in _ENTER:
                self._end_line()
            elif key in _ERASE:
                del self._line[-1:]
            elif key in _DROP:
                self._line.clear()
                self._secret = self._secret and key != _CANCEL
            else:
                self._line.append(key)
        self._stream.write(data)

    def close(self) -> None:
        """Report an unfinished line, and close the stream."""
        if self._line:
            self._end_line()
        self._stream.close()

    def _end_line(self) -> None:
        self._report("***" if self._secret else decode(bytes(self._line[:_LINE])))
        self._line.clear()
        self._secret = False
