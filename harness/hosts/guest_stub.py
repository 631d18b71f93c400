# SPDX-License-Identifier: BSD-2-Clause
"""A gdb stub for one domain, at a Unix socket on this machine. The program :mod:`harness.dom0.gdb_stub` in dom0 answers."""

from __future__ import annotations

import contextlib
import os
import re
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

from harness.deadline import Deadline
from harness.dom0 import gdb_stub
from harness.errors import InfrastructureError, TransportError
from harness.hosts.debugger import Debugger
from harness.safetext import plain
from harness.transport import Stream, Transport
from harness.xen import dom0_program

_COVERS = "domain {}: registers of its vCPUs, and memory; no breakpoints, no steps; gdb stops this domain alone"
# gdb-123-run-5: the process that serves it, its run, and the domain
_NAME = re.compile(r"gdb-(\d+)-")
# gdb's packet "detach", and its answer: a gdb that was killed has not sent it.
_DETACH, _DETACHED = b"$D#44", b"$OK#9a"
# Seconds between two looks at the end; for the start of the program; for the answer to "detach".
_POLL, _START, _ANSWER = 0.2, 30.0, 2.0


@contextlib.contextmanager
def serve(transport: Transport, domain: int, path: Path) -> Iterator[Debugger]:
    """Open the stub for ``domain`` at the socket ``path``, until the block ends.

    At the end the domain runs, and the socket is removed. Raises InfrastructureError if the socket cannot be made, and as
    Transport.open().
    """
    with contextlib.ExitStack() as stack:
        server = stack.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_STREAM))
        try:
            path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            path.unlink(missing_ok=True)
            server.bind(str(path))
            stack.callback(path.unlink, missing_ok=True)
            server.listen(1)
        except OSError as exc:
            raise InfrastructureError(f"{path}: {exc.strerror or exc}", hint="set FXH_RUNTIME to a short, writable path") from exc
        stream = dom0_program.start(transport, gdb_stub, str(domain))
        stack.callback(stream.close)
        _wait_until_ready(stream, transport.name)
        bridge = _Bridge(server, stream)
        stack.callback(bridge.end)
        yield Debugger("guest", _COVERS.format(domain), str(path), attached=bridge.attached)


def socket_name(run: str, domain: int) -> str:
    """The name of the socket of this process for ``domain``."""
    return f"gdb-{os.getpid()}-{run}-{domain}"


def sweep(directory: Path) -> None:
    """Remove the sockets of processes that have ended. It does not connect, because a running stub would treat it as gdb."""
    for path in directory.glob("gdb-*"):
        match = _NAME.match(path.name)
        if match and not _lives(int(match[1])):
            with contextlib.suppress(OSError):
                path.unlink(missing_ok=True)


def _lives(process: int) -> bool:
    try:
        os.kill(process, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:
        pass
    return True


def _wait_until_ready(stream: Stream, host: str) -> None:
    """Wait for the program's first line. Raises InfrastructureError with its message if it ends instead."""
    said, deadline = b"", Deadline(_START)
    while gdb_stub.READY not in said:
        try:
            data = stream.read(4096, _POLL)
        except TimeoutError:
            if not deadline.expired:
                continue
            data = b""
        said += data
        if not data:
            last = plain(said.decode("utf-8", "replace")).strip().splitlines()[-1:] or [f"no answer within {_START:.0f} s"]
            raise InfrastructureError(
                f"{host}: the gdb stub does not start: {last[0]}", hint="it needs python3 and libxenctrl in dom0"
            )


class _Bridge:
    """Connects one client after the other with ``stream``."""

    def __init__(self, server: socket.socket, stream: Stream) -> None:
        self._server, self._stream = server, stream
        self._client: socket.socket | None = None
        self._stop = threading.Event()
        self._drained = threading.Event()
        """Cleared while answers for a closed client may arrive. The next client must not get them."""
        self._drained.set()
        self._late = b""
        self._threads = [threading.Thread(target=work, daemon=True, name="gdb-stub") for work in (self._accept, self._answer)]
        for thread in self._threads:
            thread.start()

    def attached(self) -> bool:
        return self._client is not None

    def end(self) -> None:
        self._stop.set()
        self._stream.close()
        for thread in self._threads:
            thread.join(5)

    def _accept(self) -> None:
        self._server.settimeout(_POLL)
        while not self._stop.is_set():
            with contextlib.suppress(TimeoutError, OSError, TransportError):
                client, _ = self._server.accept()
                with client:
                    self._client = client
                    try:
                        self._copy(client)
                    finally:
                        self._drained.clear()
                        self._client = None
                        self._stream.write(_DETACH)
                        self._drained.wait(_ANSWER)

    def _copy(self, client: socket.socket) -> None:
        """Pass the client's bytes on until it closes the connection."""
        client.settimeout(_POLL)
        while not self._stop.is_set():
            try:
                data = client.recv(4096)
            except TimeoutError:
                continue
            if not data:
                return
            self._stream.write(data)

    def _answer(self) -> None:
        """Pass the answers on to the client, if there is one."""
        while not self._stop.is_set():
            try:
                data = self._stream.read(4096, _POLL)
            except TimeoutError:
                continue
            except TransportError:
                data = b""
            if not data:
                self._stop.set()
                return
            if not self._drained.is_set():
                data = self._drain(data)
            if data and (client := self._client) is not None:
                with contextlib.suppress(OSError):
                    client.sendall(data)

    def _drain(self, data: bytes) -> bytes:
        """Drop the answers for a closed client, up to that to "detach". Returns the bytes after it."""
        _, found, rest = (self._late + data).partition(_DETACHED)
        self._late = b"" if found else (self._late + data)[-len(_DETACHED) :]
        if found:
            self._drained.set()
        return rest
