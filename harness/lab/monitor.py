# SPDX-License-Identifier: BSD-2-Clause
"""QEMU's monitor (QMP), made synchronous: one command at a time, each with a time limit."""

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

# A command that QEMU has not answered by then will not be answered: none of ours computes for long.
_ANSWER = 20.0

# A QEMU that ends on purpose ends its monitor first: that is no news.
logging.getLogger("qemu.qmp.protocol").setLevel(logging.CRITICAL)


class QemuRefused(LabDead):
    """QEMU answered a command with an error; the machine may well live on."""


class Monitor:
    """A connection to the QMP socket at ``path``. QEMU serves one client at a time.

    Raises LabDead when nobody answers there within ``patience`` seconds.
    """

    def __init__(self, path: Path, patience: float = 2.0) -> None:
        self._lock = threading.Lock()
        self._loop = asyncio.new_event_loop()
        self._client = QMPClient(path.name)
        try:
            self._run(self._client.connect(str(path)), patience)
        except (TimeoutError, QMPError, OSError) as exc:
            self.close()
            raise LabDead(
                f"QEMU's monitor at {path} does not answer: {exc or type(exc).__name__}",
                hint="its owner may hold it (QEMU serves one at a time); `fxh lab list` tells who",
            ) from exc

    def command(self, name: str, **arguments: Any) -> Any:
        """Run a QMP command. Raises QemuRefused with QEMU's words, LabDead when it does not answer."""
        try:
            with self._lock:
                return self._run(self._client.execute(name, arguments), _ANSWER)
        except ExecuteError as exc:
            raise QemuRefused(f"QEMU refused {name}: {exc}") from exc
        except (TimeoutError, QMPError, OSError, EOFError) as exc:
            raise LabDead(f"QEMU did not answer {name}: {exc or type(exc).__name__}") from exc

    def close(self) -> None:
        """Let go of the monitor; may be called twice."""
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
