# SPDX-License-Identifier: BSD-2-Clause
"""Time that goes into what the harness builds, downloads or waits for while cases run: it is the run's setup, no case's own.

Whoever does such work wraps it in :func:`step`. A run listens by :func:`listen`; without a listener a step costs nothing.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass

from harness import stamp
from harness.errors import InfrastructureError

# Seconds. A shorter step did nothing but find what it looked for.
_LEAST = 0.1


@dataclass(frozen=True)
class Step:
    """``seconds`` are its own, without those of steps within it; ``started`` is UTC."""

    what: str
    seconds: float
    started: str


class _Listener:
    def __init__(self, tell: Callable[[Step], None]) -> None:
        self.tell = tell
        self.told = [0.0]
        """Seconds of the steps told within each step that is open; the first is the run itself."""


_listener: ContextVar[_Listener | None] = ContextVar("fxh.preparing", default=None)


def listen(tell: Callable[[Step], None]) -> Callable[[], None]:
    """Have ``tell`` called as each step of this thread ends, until what this returns is called."""
    before = _listener.get()
    _listener.set(_Listener(tell))

    def stop() -> None:
        _listener.set(before)

    return stop


@contextmanager
def step(what: str) -> Iterator[None]:
    """The work within is setup. ``what`` says the same of the same work in every run: by it runs are compared.

    Work that ends in an error which is not the infrastructure's (a guest that dies while a checkpoint of it is made) is the case's.
    """
    listener = _listener.get()
    if listener is None:
        yield
        return
    started, begun = stamp.now(), time.monotonic()
    listener.told.append(0.0)
    setup = False
    try:
        yield
        setup = True
    except InfrastructureError:
        setup = True
        raise
    finally:
        within = listener.told.pop()
        own = time.monotonic() - begun - within
        if not setup or own < _LEAST:
            own = 0.0
        listener.told[-1] += within + own
        if own:
            listener.tell(Step(what, own, started))
