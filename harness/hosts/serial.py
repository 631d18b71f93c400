# SPDX-License-Identifier: BSD-2-Clause
"""The serial console of a host: one process of this machine reads it into a file, which all processes search for crashes."""

from __future__ import annotations

import contextlib
import fcntl
import logging
import os
import socket
import termios
import threading
from collections.abc import Callable, Sequence
from pathlib import Path

from filelock import FileLock, Timeout

from harness.config import addresses
from harness.config.schema import HostConfig
from harness.console import hypervisor
from harness.deadline import Deadline
from harness.errors import InfrastructureError, TransportError
from harness.hosts.operator_command import without_arguments
from harness.hosts.record import HostRecord
from harness.safetext import plain
from harness.transport import Stream
from harness.transport.local import DescriptorStream, LocalTransport, keep_alive

log = logging.getLogger("fxh.hosts")

# Bytes after which the file is replaced.
_LARGEST = 64 << 20
# Bytes before the new ones that are searched again, for a report that arrives in parts.
_OVERLAP = 1 << 14
# Seconds in which a console that has another reader closes or refuses the connection: ser2net and ipmitool do.
_REFUSAL = 1.5
# Seconds between two attempts to open a console that has closed, or to replace a reader that has ended.
_AGAIN = 5.0
# Seconds for a command that reads a console to end its session, as `ipmitool sol activate` must.
_GRACE = 2.0
# The fix if the log of a console cannot be written.
_STORE = "free space in the store, or correct its permissions"


class SerialError(InfrastructureError):
    """A serial console cannot be read."""


def open_console(config: HostConfig) -> Stream:
    """Open ``hosts.NAME.serial``. Raises SerialError, also if another program reads it."""
    key = f"hosts.{config.name}.serial"
    where = config.serial[0] if len(config.serial) == 1 else ""
    try:
        if where.startswith("/dev/"):
            return DescriptorStream(_device(where, key))
        if where.startswith("unix:"):
            connection = socket.socket(socket.AF_UNIX)
            connection.settimeout(10)
            connection.connect(where.removeprefix("unix:"))
        elif where.startswith("tcp:"):
            connection = socket.create_connection(addresses.server(where.removeprefix("tcp:")), timeout=10)
            keep_alive(connection)
        else:
            return LocalTransport().open(config.serial, pty=True, grace=_GRACE)
        connection.setblocking(True)
        return DescriptorStream(connection.detach())
    except (OSError, TransportError) as exc:
        raise SerialError(
            f"{key}: cannot open {where or config.serial[0]}: {without_arguments(str(exc), config.serial)}",
            hint=f"correct {key} in fxh.toml",
        ) from exc


def _device(path: str, key: str) -> int:
    """Open a tty at 115200 8N1, without a controlling terminal. It must have no other reader, which would get part of the bytes."""
    descriptor = os.open(path, os.O_RDWR | os.O_NOCTTY | os.O_NONBLOCK)
    try:
        # tio, minicom and pyserial lock a tty like this. Others do not, so look for their open files, too.
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            reader = _other_reader(os.path.realpath(path))
        except BlockingIOError:
            reader = _other_reader(os.path.realpath(path)) or "another program"
        if reader:
            raise SerialError(
                f"{key}: {path} has another reader: {reader}", hint="end that program, or remove the key from fxh.toml"
            )
        with contextlib.suppress(termios.error):  # a pty has no speed
            _raw(descriptor)
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


def _raw(descriptor: int) -> None:
    mode = termios.tcgetattr(descriptor)
    mode[0] = mode[1] = mode[3] = 0
    mode[2] = termios.CS8 | termios.CREAD | termios.CLOCAL
    mode[4] = mode[5] = termios.B115200
    termios.tcsetattr(descriptor, termios.TCSANOW, mode)


def _other_reader(path: str) -> str:
    """A process of this machine that has the tty open: ``minicom (pid 77)``; "" if none is visible."""
    for process in Path("/proc").glob("[0-9]*"):
        if process.name == str(os.getpid()):
            continue
        with contextlib.suppress(OSError):
            if any(str(file.readlink()) == path for file in (process / "fd").iterdir()):
                return f"{plain((process / 'comm').read_text().strip())} (pid {process.name})"
    return ""


class SerialLog:
    """Keeps the output of a host's serial console in a file of this machine, from :meth:`start` to :meth:`stop`.

    Of several processes, one reads the console, and another one continues when it ends.
    """

    def __init__(self, directory: Path, key: str, connect: Callable[[], Stream], argv: Sequence[str] = ()) -> None:
        """``directory`` is the host's. ``key`` names the console in errors; ``connect`` opens it, for a command by ``argv``."""
        self._argv = argv
        self.path = directory / "serial.log"
        self._old = self.path.with_suffix(".old")
        self._unwritten = ""
        """Why the last output could not be written, or ""."""
        self._key, self._connect = key, connect
        # One thread may take the lock, and another one release it.
        self._lock = FileLock(directory / "serial.lock", thread_local=False)
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        """Begin to read, unless another process of the harness does. Raises SerialError if the console cannot be read."""
        try:
            reader = self._become_reader()
            stream = self._open() if reader else None
        except OSError as exc:
            self._lock.release()
            raise SerialError(f"{self._key}: cannot lock {self._lock.lock_file}: {exc.strerror}", hint=_STORE) from exc
        except BaseException:
            self._lock.release()
            raise
        self._thread = threading.Thread(target=self._record, args=(stream, reader), daemon=True, name="serial")
        self._thread.start()

    def stop(self) -> None:
        """Close the console."""
        self._stop.set()
        if self._thread is not None:
            self._thread.join(10)
        self._lock.release()

    @property
    def end(self) -> int:
        """The present size of the file in bytes."""
        try:
            return self.path.stat().st_size
        except OSError:
            return 0

    def since(self, begin: int, limit: int) -> bytes:
        """The last ``limit`` bytes of those after the offset ``begin``."""
        return self._since(begin, limit)[1]

    def _since(self, begin: int, limit: int) -> tuple[int, bytes]:
        """:meth:`since`, and the offset of its first byte."""
        end = self.end
        # The file was replaced if it is shorter now.
        start = max(begin if begin <= end else 0, end - limit)
        with contextlib.suppress(OSError), self.path.open("rb") as file:
            file.seek(start)
            return start, file.read(limit)
        return start, b""

    def _before(self, offset: int) -> bytes:
        """The byte before ``offset``, which may be the last one of the file that this one replaced. Without it, a line end."""
        path, offset = (self.path, offset) if offset else (self._old, self._old.stat().st_size if self._old.exists() else 0)
        with contextlib.suppress(OSError), path.open("rb") as file:
            file.seek(max(0, offset - 1))
            return file.read(1) or b"\n"
        return b"\n"

    def crash(self, begin: int, seen: int) -> str:
        """The report of a crash after the offset ``begin`` (see :func:`harness.console.hypervisor.crash`); "" if there is none.

        The bytes before ``seen`` were searched before.
        """
        if self.end == seen:
            return ""
        start, data = self._since(max(begin, seen - _OVERLAP), _LARGEST)
        if self._before(start) != b"\n":
            # A line without its begin may be a guest's.
            data = data.partition(b"\n")[2]
        return hypervisor.crash(data)

    def _become_reader(self) -> bool:
        try:
            self._lock.acquire(timeout=0)
        except Timeout:
            return False
        return True

    def _open(self) -> Stream:
        """Open the console. Raises SerialError, also if it closes at once."""
        stream = self._connect()
        deadline, data = Deadline(_REFUSAL), b""
        try:
            while not deadline.expired:
                new = stream.read(1 << 16, deadline.remaining)
                if not new:
                    said = without_arguments(plain(data.decode("utf-8", "replace")).strip(), self._argv)[-200:]
                    raise SerialError(
                        f"{self._key} closed at once{f': {said}' if said else ''}",
                        hint="end the other reader of this console, or correct the key in fxh.toml",
                    )
                data += new
        except TimeoutError:
            pass
        except BaseException:
            stream.close()
            raise
        try:
            self._write(data)
        except OSError as exc:
            stream.close()
            raise SerialError(f"{self._key}: cannot write {self.path}: {exc.strerror}", hint=_STORE) from exc
        return stream

    def _record(self, stream: Stream | None, reader: bool) -> None:
        try:
            self._read(stream, reader)
        finally:
            # Another process continues.
            self._lock.release()

    def _read(self, stream: Stream | None, reader: bool) -> None:
        while not self._stop.is_set():
            if stream is None:
                if self._stop.wait(_AGAIN):
                    break
                with contextlib.suppress(SerialError, OSError):
                    reader = reader or self._become_reader()
                    stream = self._open() if reader else None
                continue
            try:
                data = stream.read(1 << 16, 1.0)
            except TimeoutError:
                continue
            if data:
                self._try_to_write(data)
            else:
                log.warning("%s closed; opening it again every %.0f s", self._key, _AGAIN)
                stream.close()
                stream = None
        if stream is not None:
            stream.close()

    def _try_to_write(self, data: bytes) -> None:
        """:meth:`_write`, but log an error once: the disk may have room again."""
        try:
            self._write(data)
            self._unwritten = ""
        except OSError as exc:
            if not self._unwritten:
                log.warning(
                    "%s: cannot write %s: %s: crashes may go unnoticed\n  hint: %s", self._key, self.path, exc.strerror, _STORE
                )
            self._unwritten = str(exc.strerror)

    def _write(self, data: bytes) -> None:
        with self.path.open("ab") as file:
            file.write(data)
        if self.end > _LARGEST:
            self.path.replace(self._old)


def of(config: HostConfig) -> SerialLog | None:
    """The log of a host's serial console; None if fxh.toml has no ``serial`` for it."""
    if not config.serial:
        return None
    return SerialLog(HostRecord(config.name).directory, f"hosts.{config.name}.serial", lambda: open_console(config), config.serial)
