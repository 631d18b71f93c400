# SPDX-License-Identifier: BSD-2-Clause
"""Waiting for a program in dom0 to tell something, instead of asking again and again: that costs dom0 nothing."""

from __future__ import annotations

import contextlib
import math
import re
import time
from collections.abc import Callable, Iterator

from harness.deadline import Deadline
from harness.transport import Transport

Pause = Callable[[float], None]
# Seconds for a process to start in a dom0 that is busy, under emulation.
_BEGINS = 60.0


@contextlib.contextmanager
def wait_on_output(transport: Transport, argv: list[str], *, seconds: float, own: int, news: bytes = b"\n") -> Iterator[Pause]:
    """For at most ``seconds``: a pause, given its longest in seconds, that ends when the program tells what matches ``news``.

    Its first ``own`` lines say that it has begun, and are no news: what it tells after them, also between two pauses, ends the
    next one. One that has ended tells nothing. Raises TransportError, and DeadlineExpired when it does not begin.
    """
    stream = transport.open(["timeout", str(max(1, math.ceil(seconds))), *argv])
    wanted, said = re.compile(news), b""

    def pause(longest: float) -> None:
        nonlocal said
        deadline = Deadline(longest)
        while not wanted.search(said):
            try:
                data = stream.read(4096, deadline.remaining)
            except TimeoutError:
                return
            if not data:
                time.sleep(deadline.remaining)
                return
            said += data
        said = b""

    try:
        beginning = Deadline(_BEGINS)
        while said.count(b"\n") < own:
            with contextlib.suppress(TimeoutError):
                data = stream.read(4096, beginning.remaining)
                if not data:
                    break
                said += data
            if beginning.expired:
                raise beginning.expire(f"{' '.join(argv)} to begin")
        said = b"".join(said.splitlines(keepends=True)[own:])
        yield pause
    finally:
        stream.close()
