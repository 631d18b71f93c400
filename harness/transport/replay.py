# SPDX-License-Identifier: BSD-2-Clause
"""Plays a recorded console, with the faults that real ones have, so that every detector is tested without a machine."""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence


class ReplayStream:
    """``data`` in chunks of ``sizes`` bytes (in turn, round and round), ``pace`` seconds apart.

    ``end`` says what follows: ``"eof"``, or ``"silence"`` until it is closed. What is written is kept in ``written``;
    ``answers`` maps a written line to bytes played next.
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
