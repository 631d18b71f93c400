# SPDX-License-Identifier: BSD-2-Clause
"""A synchronous client of QEMU's monitor (QMP): one command at a time, each with a time limit."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import threading
from collections.abc import Coroutine
from pathlib import Path
from typing import Any, TypeVar

from qemu.qmp import ExecuteError, QMPClient, QMPError

from harness.errors import LabDead

T = TypeVar("T")

# Seconds. No command of the harness takes long, so a later answer will not come.
_ANSWER = 20.0

# When QEMU ends as intended, its monitor closes first. Do not log that.
logging.getLogger("qemu.qmp.protocol").setLevel(logging.CRITICAL)


class QemuRefused(LabDead):
    """QEMU answered a command with an error. The machine may continue to run."""


class Monitor:
    """A connection to the QMP socket at ``path``. QEMU serves one client at a time.

    Raises LabDead if QEMU does not answer within ``timeout`` seconds.
    """

    def __init__(self, path: Path, timeout: float = 2.0) -> None:
        self._lock = threading.Lock()
        self._loop = asyncio.new_event_loop()
        self._client = QMPClient(path.name)
        try:
            self._run(self._client.connect(str(path)), timeout)
        except (TimeoutError, QMPError, OSError) as exc:
            self.close()
            raise LabDead(
                f"QEMU's monitor at {path} does not answer: {exc or type(exc).__name__}",
                hint="its owner may use it, and QEMU serves one client at a time; `fxh lab list` shows the owner",
            ) from exc

    def command(self, name: str, **arguments: Any) -> Any:
        """Run a QMP command. Raises QemuRefused with QEMU's message, LabDead if it does not answer."""
        try:
            with self._lock:
                return self._run(self._client.execute(name, arguments), _ANSWER)
        except ExecuteError as exc:
            raise QemuRefused(f"QEMU refused {name}: {exc}") from exc
        except (TimeoutError, QMPError, OSError, EOFError) as exc:
            raise LabDead(f"QEMU did not answer {name}: {exc or type(exc).__name__}") from exc

    def close(self) -> None:
        """Close the connection. A second call does nothing."""
        with self._lock:
            if self._loop.is_closed():
                return
            with contextlib.suppress(QMPError, OSError, EOFError, asyncio.TimeoutError):
                self._run(self._client.disconnect(), 2.0)
            self._loop.close()

    def _run(self, work: Coroutine[Any, Any, T], seconds: float) -> T:
        if self._loop.is_closed():
            work.close()
            raise LabDead("QEMU's monitor is closed")
        return self._loop.run_until_complete(asyncio.wait_for(work, seconds))
