# SPDX-License-Identifier: BSD-2-Clause
"""Waits for output of a program in dom0 instead of polling, so that the wait costs dom0 no CPU time."""

from __future__ import annotations

import contextlib
import math
import re
import time
from collections.abc import Callable, Iterator

from harness.deadline import Deadline
from harness.transport import Transport

Pause = Callable[[float], None]
# Seconds for a process to start in a busy dom0 under emulation.
_START = 60.0


@contextlib.contextmanager
def wait_on_output(transport: Transport, argv: list[str], *, seconds: float, own: int, news: bytes = b"\n") -> Iterator[Pause]:
    """Run ``argv`` for at most ``seconds``. Yields a pause, which ends early when the output matches ``news``.

    The argument of a pause is its longest duration in seconds. The first ``own`` lines are start-up output and are discarded.
    Later output ends the current pause, or the next one. After the program exits, pauses last their full duration.
    Raises TransportError, and DeadlineExpired if the program prints no start-up output within 60 s.
    """
    stream = transport.open(["timeout", str(max(1, math.ceil(seconds))), *argv])
    wanted, output = re.compile(news), b""

    def pause(longest: float) -> None:
        nonlocal output
        deadline = Deadline(longest)
        while not wanted.search(output):
            try:
                data = stream.read(4096, deadline.remaining)
            except TimeoutError:
                return
            if not data:
                time.sleep(deadline.remaining)
                return
            output += data
        output = b""

    try:
        start = Deadline(_START)
        while output.count(b"\n") < own:
            with contextlib.suppress(TimeoutError):
                data = stream.read(4096, start.remaining)
                if not data:
                    break
                output += data
            if start.expired:
                raise start.expire(f"{' '.join(argv)} to start")
        output = b"".join(output.splitlines(keepends=True)[own:])
        yield pause
    finally:
        stream.close()
