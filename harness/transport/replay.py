# SPDX-License-Identifier: BSD-2-Clause
"""Replays a recorded console with the faults of real ones, so that tests of the detectors need no machine."""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence


class ReplayStream:
    """Replays ``data`` in chunks of ``sizes`` bytes (used cyclically), ``pace`` seconds apart.

    After ``data``, the stream ends if ``end`` is ``"eof"``; if it is ``"silence"``, it stays open until it is closed.
    ``written`` collects the bytes written to it. ``answers`` maps a written line to the bytes to replay next.
    """

    def __init__(
        self,
        data: bytes,
        *,
        sizes: Sequence[int] = (4096,),
        pace: float = 0.0,
        end: str = "eof",
        answers: dict[bytes, bytes] | None = None,
    ) -> None:
        self._chunks: list[bytes] = []
        at, turn = 0, 0
        while at < len(data):
            size = max(1, sizes[turn % len(sizes)])
            self._chunks.append(data[at : at + size])
            at, turn = at + size, turn + 1
        self._pace, self._end, self._answers = pace, end, answers or {}
        self._closed = threading.Event()
        self._lock = threading.Lock()
        self.written = b""

    def read(self, size: int, timeout: float | None = None) -> bytes:
        if self._closed.is_set():
            return b""
        with self._lock:
            if self._chunks:
                if self._pace:
                    time.sleep(self._pace)
                return self._chunks.pop(0)
        if self._end == "eof":
            return b""
        if self._closed.wait(timeout):
            return b""
        raise TimeoutError

    def write(self, data: bytes) -> None:
        with self._lock:
            self.written += data
            answer = self._answers.get(data.rstrip(b"\r\n"))
            if answer is not None:
                self._chunks.append(answer)

    def close(self) -> None:
        self._closed.set()
