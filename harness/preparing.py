# SPDX-License-Identifier: BSD-2-Clause
"""Measures the time in which the harness builds, downloads or waits. It counts as setup of the run, not of a case.

Code that does such work wraps it in :func:`step`. A run registers with :func:`listen`; without it a step costs nothing.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass

from harness import stamp
from harness.errors import InfrastructureError

# Seconds. A shorter step only found that nothing had to be done.
_LEAST = 0.1


@dataclass(frozen=True)
class Step:
    """``seconds`` excludes the steps inside this one. ``started`` is in UTC."""

    what: str
    seconds: float
    started: str


class _Listener:
    def __init__(self, report: Callable[[Step], None]) -> None:
        self.report = report
        self.reported = [0.0]
        """Seconds already reported inside each open step. The first entry is the run itself."""


_listener: ContextVar[_Listener | None] = ContextVar("fxh.preparing", default=None)


def listen(report: Callable[[Step], None]) -> Callable[[], None]:
    """Call ``report`` at the end of each step of this thread. Returns a function that stops this."""
    before = _listener.get()
    _listener.set(_Listener(report))

    def stop() -> None:
        _listener.set(before)

    return stop


@contextmanager
def step(what: str) -> Iterator[None]:
    """Count the time inside as setup. ``what`` must be equal for equal work in every run, because runs are compared by it.

    If it raises an error other than InfrastructureError, for example because a guest died while its checkpoint was created, the
    time counts as the case's.
    """
    listener = _listener.get()
    if listener is None:
        yield
        return
    started, begun = stamp.now(), time.monotonic()
    listener.reported.append(0.0)
    setup = False
    try:
        yield
        setup = True
    except InfrastructureError:
        setup = True
        raise
    finally:
        within = listener.reported.pop()
        own = time.monotonic() - begun - within
        if not setup or own < _LEAST:
            own = 0.0
        listener.reported[-1] += within + own
        if own:
            listener.report(Step(what, own, started))
