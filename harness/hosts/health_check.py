# SPDX-License-Identifier: BSD-2-Clause
"""Notices that a leased host hangs: its sshd stops answering, or its serial console reports a crash."""

from __future__ import annotations

import logging
import threading
import time

from harness.errors import TransportError
from harness.hosts.lease import HEARTBEAT, SILENCE
from harness.hosts.serial import SerialLog
from harness.transport import Transport

log = logging.getLogger("fxh.hosts")

# Seconds between two checks.
_INTERVAL = 1.0
# Seconds for the rest of a crash's report to arrive.
_REPORT = 1.0


class HealthCheck:
    """Checks one host until :meth:`stop`. When the host is lost, the connection is closed, so that every wait on it ends."""

    def __init__(self, transport: Transport, serial: SerialLog | None, silence: float = HEARTBEAT + SILENCE) -> None:
        """``silence`` is the time (s) without an answer after which the host counts as lost: its agent ends the lease before."""
        self.lost = ""
        """The reason why the host is lost, or ""."""
        self._transport, self._serial, self._silence = transport, serial, silence
        self._begin = self._seen = serial.end if serial is not None else 0
        self._stop = threading.Event()
        self._silent = 0.0
        for name, target in (("host-ping", self._ping), ("host-check", self._check)):
            threading.Thread(target=target, daemon=True, name=name).start()

    @property
    def silent(self) -> float:
        """Seconds since the host last answered a heartbeat."""
        return self._silent

    def stop(self) -> None:
        """Stop the checks. The connection stays open."""
        self._stop.set()

    def serial_output(self, limit: int) -> bytes:
        """The last ``limit`` bytes that the serial console printed since the checks began."""
        return b"" if self._serial is None else self._serial.since(self._begin, limit)

    def _ping(self) -> None:
        try:
            while not self._stop.wait(HEARTBEAT):
                self._transport.ping()
                self._silent = 0.0
        except TransportError:
            return  # the lease reports it

    def _check(self) -> None:
        # Count checks, not time: this process may have been stopped.
        while not self._stop.wait(_INTERVAL):
            self._silent += _INTERVAL
            crash = self._crash()
            if self._silent > self._silence:
                self._lose(f"no heartbeat for {self._silence:.0f} s")
            elif crash:
                self._lose(f"its serial console reports: {crash}")
            if self.lost:
                return

    def _crash(self) -> str:
        if self._serial is None:
            return ""
        seen, self._seen = self._seen, self._serial.end
        if not self._serial.crash(self._begin, seen):
            return ""
        time.sleep(_REPORT)
        return self._serial.crash(self._begin, seen)

    def _lose(self, why: str) -> None:
        self.lost = f"{self._transport.name}: {why}"
        log.warning("%s", self.lost)
        self._transport.close()
