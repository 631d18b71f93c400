# SPDX-License-Identifier: BSD-2-Clause
"""Listens to dom0's sign of life, a byte a second on the machine's second serial port."""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from collections.abc import Callable
from pathlib import Path

# A hung hypervisor has to be found within 10 s, and dom0 under emulation can be two seconds late with a beat.
SILENCE = 8.0


class Pulse:
    """Calls ``silent(seconds)``, from its own thread, when no beat came for ``silence`` seconds since the start.

    It answers whether the machine may yet come back: then it is asked again while the silence lasts.
    """

    def __init__(self, path: Path, silent: Callable[[float], bool], silence: float = SILENCE) -> None:
        self._path, self._silent, self._silence = path, silent, silence
        self._stop = threading.Event()
        self._link = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.last = time.monotonic()
        self._thread = threading.Thread(target=self._listen, name="lab-pulse", daemon=True)

    def start(self) -> None:
        """Listen; dom0 is known to be up."""
        self.last = time.monotonic()
        self._thread.start()

    def stop(self) -> None:
        """Listen no more; returns at once."""
        self._stop.set()
        with contextlib.suppress(OSError):
            self._link.shutdown(socket.SHUT_RDWR)
        if self._thread is not threading.current_thread() and self._thread.is_alive():
            self._thread.join(5)

    def _listen(self) -> None:
        with self._link as link:
            link.settimeout(0.25)
            connected = False
            while not self._stop.is_set():
                try:
                    if not connected:
                        link.connect(str(self._path))
                        connected = True
                    if not link.recv(4096):
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
                if time.monotonic() - self.last > self._silence and not self._report():
                    return

    def _report(self) -> bool:
        return not self._stop.is_set() and self._silent(time.monotonic() - self.last)
