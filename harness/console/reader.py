# SPDX-License-Identifier: BSD-2-Clause
"""Reads a guest's console in its own thread: logs every byte, follows the boot, and ends every wait when the guest dies."""

from __future__ import annotations

import contextlib
import logging
import re
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import IO

from harness.console.backtrace import Symbols
from harness.console.boot_tracker import BootTracker, Overrun, PendingDeath
from harness.console.deaths import Death
from harness.console.debugger import Debugger
from harness.console.diagnosis import Diagnosis
from harness.console.kinds import SECOND_BOOT
from harness.console.stages import FIRST_LINE, StageReached
from harness.console.tables import ConsoleTables
from harness.console.text import decode, excerpt
from harness.deadline import Deadline
from harness.errors import GuestDied, HarnessError, InfrastructureError, TransportError
from harness.transport import Stream

log = logging.getLogger("fxh.console")

_CHUNK = 1 << 16
MOST = 64 << 20
"""Bytes of the log that are read at once."""
# Bytes of a chunk that are searched together with the next one.
_OVERLAP = 4096
# Seconds that one read waits for output.
_POLL = 0.1

Listener = Callable[[StageReached | Death], None]


class ConsoleReader:
    """Reads ``stream`` to its end. Writes every byte to ``log_path``, and the time of every chunk to ``log_path``.idx.

    The index has a line ``offset time`` (bytes, monotonic seconds) for each chunk. When the guest dies, every wait raises
    GuestDied at once.

    ``tables`` describe the console of the guest's OS. ``scale`` multiplies the time budgets of the stages. ``ask``: run commands
    at the prompt of a dead guest. ``running``: the guest has already booted, so any boot on this console is a second one.
    ``listener`` is called on the reader's thread. ``symbols`` reads the guest's kernel file; it is called only if a backtrace
    lacks names.
    """

    def __init__(
        self,
        stream: Stream,
        log_path: Path,
        *,
        tables: ConsoleTables,
        name: str = "guest",
        scale: float = 1.0,
        first_line: float = FIRST_LINE,
        ask: bool = True,
        running: bool = False,
        listener: Listener | None = None,
        symbols: Callable[[], Symbols | None] | None = None,
    ) -> None:
        self.name, self.log_path = name, log_path
        self._stream, self._listener = stream, listener
        self._changed = threading.Condition()
        self._out: IO[bytes] = log_path.open("ab", buffering=0)
        self._index: IO[str] = Path(f"{log_path}.idx").open("a", buffering=1)  # noqa: SIM115 - close() closes it
        self._tracker = BootTracker(tables, first_line=first_line, scale=scale, running=running)
        self._debugger = Debugger(self, self._tracker, self._receive, tables) if ask else None
        self._diagnosis = Diagnosis(self, self._tracker, self._debugger, tables, symbols=symbols, stretch=max(1.0, scale))
        self.closed = False
        self.death: Death | None = None
        self._expected_end = False
        self._broken: HarnessError | None = None
        self._expecting = 0
        self._begin_boot(self._out.tell(), running=running)
        self._thread = self._new_thread()

    # -- start and stop -----------------------------------------------------------------------------------------------

    def _new_thread(self) -> threading.Thread:
        return threading.Thread(target=self._read, name=f"console-{self.name}", daemon=True)

    def start(self) -> ConsoleReader:
        self._thread.start()
        return self

    def stop(self) -> None:
        """End the stream and the thread. The log stays open."""
        self._expected_end = True
        self._stream.close()
        self.join(5)

    def close(self) -> None:
        """Stop the reader and close the log."""
        self.stop()
        self._out.close()
        self._index.close()

    def join(self, seconds: float) -> None:
        """Wait up to ``seconds`` for the end of the stream."""
        if self._thread.is_alive() and self._thread is not threading.current_thread():
            self._thread.join(seconds)

    def replace_stream(self, stream: Stream, *, same_boot: bool = False) -> None:
        """Read another stream into the same log. A new boot begins (the domain was re-created) unless ``same_boot``."""
        self.stop()
        self._stream = stream
        with self._changed:
            self.closed = self._expected_end = False
            self._broken = None
            if not same_boot:
                self._begin_boot(self.offset)
        self._thread = self._new_thread()
        self._thread.start()

    def rearm(self) -> None:
        """Expect a new boot on this console: forget stages and death, continue the log."""
        with self._changed:
            self._begin_boot(self.offset)

    def _begin_boot(self, offset: int, *, running: bool = False) -> None:
        self.started = time.monotonic()
        self.death = None
        self._tracker.begin_boot(self.started, offset, running=running)

    # -- state --------------------------------------------------------------------------------------------------------

    @property
    def offset(self) -> int:
        """Length of the log in bytes."""
        return self._tracker.offset

    @property
    def boot_offset(self) -> int:
        """Offset in the log at which this boot began."""
        return self._tracker.boot_offset

    @property
    def stages(self) -> tuple[StageReached, ...]:
        """The stages that this boot has reached, in their order."""
        return self._tracker.stages

    @property
    def stage(self) -> str:
        """The name of the last stage, or ""."""
        return self._tracker.stage

    def since(self, offset: int, size: int = MOST) -> bytes:
        """Up to ``size`` bytes of the log from ``offset`` on. A guest may write more than the memory has room for."""
        with self.log_path.open("rb") as file:
            file.seek(offset)
            return file.read(size)

    def tail(self, size: int = 4096) -> str:
        """The last ``size`` bytes of the log as text."""
        return decode(self.since(max(0, self.offset - size), size))

    # -- waiting ------------------------------------------------------------------------------------------------------

    def write(self, data: bytes) -> None:
        """Type ``data`` on the console. Raises TransportError if the client has ended."""
        self._stream.write(data)

    def read(self, position: int, size: int, deadline: Deadline) -> bytes | None:
        """Up to ``size`` bytes of the log from ``position`` on, as soon as there are any.

        Returns b"" if ``deadline`` expires first, and None at the console's end. Raises GuestDied if the guest is dead and no
        unread output is left.
        """
        with self._changed:
            while self.offset <= position:
                if death := self._unexpected_death():
                    raise GuestDied(death)
                if self.closed or self.death is not None:
                    return None
                if deadline.expired:
                    return b""
                self._changed.wait(min(1.0, deadline.remaining))
        return self.since(position, size)

    def wait_for(self, pattern: bytes, deadline: Deadline, what: str, since: int | None = None) -> re.Match[bytes]:
        """Wait for a match of ``pattern`` (MULTILINE) at or after the offset ``since``, by default in this boot.

        The match is at most 4096 bytes long. ``what`` names it in errors. Raises GuestDied, DeadlineExpired, and the errors of
        :meth:`ended`.
        """
        compiled = re.compile(pattern, re.MULTILINE)
        data, position = b"", self.boot_offset if since is None else since
        while True:
            fresh = self.read(position, _CHUNK, deadline)
            if fresh is None:
                raise self.ended(f"ended while waiting for {what}")
            if not fresh:
                raise deadline.expire(f"{what} on the console of {self.name}", self._where())
            position += len(fresh)
            # A line does not begin where the kept part does.
            first = int(len(data) > _OVERLAP)
            data = data[-_OVERLAP:] + fresh
            match = compiled.search(data, first)
            if match:
                return match

    def wait_stage(self, name: str, deadline: Deadline) -> StageReached:
        """Wait for the boot to reach a stage.

        Raises GuestDied (also for a hang), DeadlineExpired, and the errors of :meth:`ended`.
        """
        with self._changed:
            while True:
                for reached in self.stages:
                    if reached.name == name:
                        return reached
                if death := self._unexpected_death():
                    raise GuestDied(death)
                if self.closed or self.death is not None:
                    raise self.ended(f"ended before stage {name!r}")
                if deadline.expired:
                    raise deadline.expire(f"{self.name} to reach stage {name!r}", self._where())
                self._changed.wait(min(1.0, deadline.remaining))

    def ended(self, how: str) -> HarnessError:
        """The error of a console that has ended: the reason, or ``how`` if nothing is wrong."""
        broken = self._broken
        if broken is None:
            return TransportError(f"the console of {self.name} {how}")
        kind = next(kind for kind in (TransportError, InfrastructureError, HarnessError) if isinstance(broken, kind))
        return kind(f"the console of {self.name} cannot be read: {broken.message}", hint=broken.hint)

    def _where(self) -> str:
        return f"it is at stage {self.stage or 'none'}, last line {excerpt(self.tail(), 1)!r}"

    def _unexpected_death(self) -> Death | None:
        """The death that ends a wait; None inside :meth:`expecting_death`."""
        return None if self._expecting else self.death

    @contextlib.contextmanager
    def expecting_death(self) -> Iterator[Callable[[Deadline], Death]]:
        """For a case that kills its guest on purpose: inside, waits do not raise GuestDied.

        Yields a function that waits for the death and returns it.
        """
        self._expecting += 1
        try:
            yield self._await_death
        finally:
            self._expecting -= 1

    def _await_death(self, deadline: Deadline) -> Death:
        with self._changed:
            while self.death is None:
                if deadline.expired:
                    raise deadline.expire(f"{self.name} to die", self._where())
                self._changed.wait(min(1.0, deadline.remaining))
            return self.death

    @contextlib.contextmanager
    def quoting(self, end: bytes) -> Iterator[None]:
        """Inside, the console shows a command's output up to the marker ``end``, which may quote a panic or a boot."""
        self._tracker.quote(end)
        try:
            yield
        finally:
            self._tracker.quote(None)

    def expect_end(self) -> None:
        """Declare that the domain is about to be destroyed, to shut down or to reboot.

        Neither the end of the console nor a second boot on it is a death then.
        """
        self._expected_end = True

    def enforce_budgets(self, on: bool) -> None:
        """Switch the time budgets of the stages on or off. Switch them off while a case pauses the domain."""
        with self._changed:
            self._tracker.progress = time.monotonic()
            self._tracker.budgets_on = on

    @contextlib.contextmanager
    def budgets_off(self) -> Iterator[None]:
        """Inside, the time budgets of the stages do not run: a person has the console. They start again afterwards."""
        before = self._tracker.budgets_on
        self.enforce_budgets(False)
        try:
            yield
        finally:
            self.enforce_budgets(before)

    # -- the thread ---------------------------------------------------------------------------------------------------

    def _read(self) -> None:
        try:
            while True:
                begun = time.monotonic()
                chunk = self._receive()
                if chunk == b"":
                    break
                # A busy machine may not have run this thread since. Only silence that a read has found counts.
                self._check(min(begun + _POLL, time.monotonic()) if chunk is None else self._tracker.last_byte)
        except InfrastructureError as exc:
            self._broken = exc
        except Exception as exc:  # a bug here must not look like the end of the guest
            log.exception("console reader of %s", self.name)
            self._broken = HarnessError(f"{type(exc).__name__}: {exc}")
        self._end()

    def _receive(self) -> bytes | None:
        """Read and log the next chunk. Returns None if there is no output yet, and b"" at the end."""
        try:
            chunk = self._stream.read(_CHUNK, _POLL)
        except TimeoutError:
            return None
        if chunk:
            self._take(chunk)
        return chunk

    def _take(self, chunk: bytes) -> None:
        now = time.monotonic()
        self._log(chunk, now)
        with self._changed:
            reached = self._tracker.feed(chunk, now)
            self._changed.notify_all()
        for stage in reached:
            self._notify(stage)

    def _log(self, chunk: bytes, now: float) -> None:
        """Append to the log and its index. Raises InfrastructureError: a full disk must not look like the end of the guest."""
        left = memoryview(chunk)
        try:
            while left:  # a disk may have room for a part only
                left = left[self._out.write(left) :]
            self._index.write(f"{self.offset} {now:.6f}\n")
        except OSError as exc:
            raise InfrastructureError(f"{self.log_path}: {exc.strerror or exc}", hint="free some space on this machine") from exc

    def _check(self, now: float | None = None, *, ended: bool = False) -> None:
        """Declare the guest dead if it is ``now``. ``ended``: no further output will come."""
        if self.death is not None:
            return
        now = time.monotonic() if now is None else now
        match self._tracker.check(now, ended=ended):
            case PendingDeath(kind=kind, offset=offset) if kind == SECOND_BOOT and self._expected_end:
                self._restart_boot(offset)
            case PendingDeath() as pending:
                # If the end is expected, an unconfirmed report does not count.
                gone = ended and not self._expected_end
                if death := self._diagnosis.diagnose(pending, final=gone or self._tracker.overrun(now) is not None):
                    self._declare(death)
            case Overrun(stage, seconds) if not ended:
                message = f"no progress after stage {stage} for {seconds:.0f} s"
                self._declare(Death("hang", message, stage, excerpt=excerpt(self.tail())))
            case _ if self._tracker.pending is not None and self._debugger is not None:
                self._debugger.turn_page()

    def _restart_boot(self, offset: int) -> None:
        """Begin a new boot at ``offset``: the case requested a reboot, and it runs on the same console."""
        with self._changed:
            end = self.offset
            reached: list[StageReached] = []
            self._begin_boot(offset)
            for begin in range(offset, end, _CHUNK):
                reached += self._tracker.feed(self.since(begin, min(_CHUNK, end - begin)), self.started)
            self._changed.notify_all()
        for stage in reached:
            self._notify(stage)

    def _declare(self, death: Death) -> None:
        with self._changed:
            self.death = replace(death, at=time.monotonic(), seen=self._tracker.last_byte)
            self._changed.notify_all()
        self._notify(self.death)

    def _end(self) -> None:
        try:
            self._check(ended=True)
        except Exception:  # the waits must still learn that the console ended
            log.exception("console reader of %s", self.name)
        if self.death is None and self._broken is None and not self._expected_end:
            message = "the console ended: the domain is gone"
            self._declare(Death("eof", message, self.stage, excerpt=excerpt(self.tail())))
        # Set this last: a wait must report the death rather than the end of the console.
        with self._changed:
            self.closed = True
            self._changed.notify_all()

    def _notify(self, event: StageReached | Death) -> None:
        if self._listener is not None:
            self._listener(event)
