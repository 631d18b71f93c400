# SPDX-License-Identifier: BSD-2-Clause
"""Read dom0's heartbeat: one byte per second on the machine's second serial port."""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from collections.abc import Callable
from pathlib import Path

# Seconds. A hung hypervisor must be found within 10 s, and a beat can be two seconds late under emulation.
SILENCE = 8.0


class Pulse:
    """Calls ``on_silence(seconds)`` from its own thread when no beat has come for ``silence`` seconds.

    While ``on_silence`` returns True (the machine may recover), it is called again until a beat comes.
    """

    def __init__(self, path: Path, on_silence: Callable[[float], bool], silence: float = SILENCE) -> None:
        self._path, self._on_silence, self._silence = path, on_silence, silence
        self._stop = threading.Event()
        self.held = False
        """Whether silence is expected, because a debugger may stop the machine."""
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.last = time.monotonic()
        self._thread = threading.Thread(target=self._listen, name="lab-pulse", daemon=True)

    def start(self) -> None:
        """Start to listen. The silence is counted from here."""
        self.last = time.monotonic()
        self._thread.start()

    def stop(self) -> None:
        """Stop listening."""
        self._stop.set()
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)
        if self._thread is not threading.current_thread() and self._thread.is_alive():
            self._thread.join(5)

    def _listen(self) -> None:
        with self._socket as connection:
            connection.settimeout(0.25)
            connected = False
            while not self._stop.is_set():
                try:
                    if not connected:
                        connection.connect(str(self._path))
                        connected = True
                    if not connection.recv(4096):
                        self._report()
                        return
                    self.last = time.monotonic()
                except TimeoutError:
                    pass
                except OSError:
                    if connected:
                        self._report()
                        return
                    self._stop.wait(0.05)
                if self.held:
                    self.last = time.monotonic()
                if time.monotonic() - self.last > self._silence and not self._report():
                    return

    def _report(self) -> bool:
        return not self._stop.is_set() and self._on_silence(time.monotonic() - self.last)
