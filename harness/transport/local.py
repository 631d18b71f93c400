# SPDX-License-Identifier: BSD-2-Clause
"""A transport to this machine: it is dom0, and commands are subprocesses."""

from __future__ import annotations

import contextlib
import os
import pty as ptys
import select
import shlex
import signal
import socket
import subprocess
import threading
from collections.abc import Iterator, Sequence

from harness.deadline import Deadline
from harness.errors import DeadlineExpired, TransportError
from harness.transport import LOOPBACK, Completed, Stream
from harness.transport.files import FileCopies


class LocalTransport(FileCopies):
    """Runs commands on this machine, each in its own process group. A command that must end is killed with its group."""

    name, near = "localhost", LOOPBACK

    def _run(self, argv: Sequence[str], deadline: Deadline, stdin: bytes) -> Completed:
        line = shlex.join(argv)
        try:
            process = subprocess.Popen(
                list(argv), stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True
            )
        except OSError as exc:
            raise TransportError(f"cannot start {line}: {exc.strerror}") from exc
        try:
            out, err = process.communicate(stdin, timeout=max(0.01, deadline.remaining))
        except subprocess.TimeoutExpired:
            _kill(process)
            process.communicate()
            raise DeadlineExpired(f"the command did not end within {deadline.seconds:.0f} s: {line}") from None
        return Completed(tuple(argv), process.returncode, out, err)

    def open(self, argv: Sequence[str], *, pty: bool = False, grace: float = 0.0) -> Stream:
        """As for any transport. ``grace`` is the time (s) that the program has to end after SIGTERM when the stream is closed."""
        try:
            if pty:
                ours, theirs = ptys.openpty()
            else:
                left, right = socket.socketpair()
                ours, theirs = left.detach(), right.detach()
            process = subprocess.Popen(list(argv), stdin=theirs, stdout=theirs, stderr=theirs, start_new_session=True)
        except OSError as exc:
            raise TransportError(f"cannot start {shlex.join(argv)}: {exc.strerror}") from exc
        os.close(theirs)
        return ProcessStream(process, ours, grace)

    def connect(self, port: int) -> Stream:
        try:
            return SocketStream(socket.create_connection((LOOPBACK, port), timeout=10))
        except OSError as exc:
            raise TransportError(f"cannot connect to port {port}: {exc}") from exc

    def ping(self) -> None:
        """Return at once: this machine answers."""

    def close(self) -> None:
        """Do nothing: there is no connection."""


class DescriptorStream:
    """A file descriptor (socket, pty) as a Stream."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        # Another thread that closes the stream wakes a blocked read through this pipe.
        self._woken, self._wake = os.pipe()
        self._closed = False
        self._lock = threading.Lock()
        self._users = 0

    def read(self, size: int, timeout: float | None = None) -> bytes:
        with self._in_use() as closed:
            if closed:
                return b""
            ready, _, _ = select.select([self._descriptor, self._woken], [], [], timeout)
            if not ready:
                raise TimeoutError
            if self._closed or self._woken in ready:
                return b""
            try:
                return os.read(self._descriptor, size)
            except OSError:  # EIO: the other side of a pty is gone
                return b""

    def write(self, data: bytes) -> None:
        with self._in_use() as closed:
            if closed:
                raise TransportError("cannot write to the stream: it is closed")
            view = memoryview(data)
            try:
                while view:
                    view = view[os.write(self._descriptor, view) :]
            except OSError as exc:
                raise TransportError(f"cannot write to the stream: {exc.strerror}") from exc

    def close(self) -> None:
        with self._in_use() as closed:
            if not closed:
                self._closed = True
                os.write(self._wake, b"x")

    @contextlib.contextmanager
    def _in_use(self) -> Iterator[bool]:
        """Yields whether the stream is closed. The last user closes the descriptors.

        If they were closed during a read, another file could get their numbers.
        """
        with self._lock:
            closed = self._closed
            self._users += 1
        try:
            yield closed
        finally:
            with self._lock:
                self._users -= 1
                if self._closed and not self._users and self._descriptor >= 0:
                    for descriptor in (self._descriptor, self._woken, self._wake):
                        os.close(descriptor)
                    self._descriptor = -1


class SocketStream(DescriptorStream):
    """A connected socket as a Stream."""

    def __init__(self, connection: socket.socket) -> None:
        connection.setblocking(True)
        super().__init__(connection.detach())


class ProcessStream(DescriptorStream):
    """The standard streams of a process, through a pty or a socket pair."""

    def __init__(self, process: subprocess.Popen[bytes], descriptor: int, grace: float = 0.0) -> None:
        super().__init__(descriptor)
        self._process, self._grace = process, grace

    def close(self) -> None:
        if self._grace and self._process.poll() is None:
            _kill(self._process, signal.SIGTERM)
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(self._grace)
        super().close()
        _kill(self._process)
        self._process.wait()


def _kill(process: subprocess.Popen[bytes], number: signal.Signals = signal.SIGKILL) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, number)


def keep_alive(connection: socket.socket) -> None:
    """Let reads of a TCP connection fail two minutes after its peer disappeared, also if nothing is sent."""
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for option, value in ((socket.TCP_KEEPIDLE, 60), (socket.TCP_KEEPINTVL, 10), (socket.TCP_KEEPCNT, 6)):
        connection.setsockopt(socket.IPPROTO_TCP, option, value)
