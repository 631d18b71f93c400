# SPDX-License-Identifier: BSD-2-Clause
"""Deadlines, not timeouts: one is made at the top and passed down."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

from harness import trace
from harness.errors import DeadlineExpired, HarnessError

T = TypeVar("T")


class ConditionNotMet(Exception):
    """Raised by a probe: its text is the reason why the thing awaited is not there yet."""


class Deadline:
    """A moment on the monotonic clock, ``seconds`` from now."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self.started = time.monotonic()
        self._end = self.started + seconds

    @property
    def remaining(self) -> float:
        """Seconds left, never below 0."""
        return max(0.0, self._end - time.monotonic())

    @property
    def expired(self) -> bool:
        return time.monotonic() >= self._end

    def capped(self, seconds: float) -> Deadline:
        """A deadline ``seconds`` from now, or this one's end where that is earlier."""
        return Deadline(min(seconds, self.remaining))

    def expire(self, what: str, reason: str = "") -> HarnessError:
        """The error to raise when this deadline ends a wait for ``what``."""
        return DeadlineExpired(self.describe(what, reason))

    def describe(self, what: str, reason: str = "") -> str:
        """How long was waited, for what, and why not for less."""
        because = f"; last reason: {reason}" if reason else ""
        return f"waited {time.monotonic() - self.started:.1f} s for {what}{because}"

    def wait(self, what: str, probe: Callable[[], T], interval: float = 0.1, pause: Callable[[float], object] = time.sleep) -> T:
        """Call ``probe`` until it returns; it raises :class:`ConditionNotMet` with the reason why not yet.

        ``pause`` is given the seconds to wait before the next call, ``interval`` or what is left, and may return sooner.
        Raises what :meth:`expire` makes of ``what`` and the last reason.
        """
        try:
            return probe()
        except ConditionNotMet as exc:
            reason = str(exc)
        with trace.step("wait", what) as step:
            while not self.expired:
                step.last = reason
                pause(min(interval, self.remaining))
                try:
                    return probe()
                except ConditionNotMet as exc:
                    reason = str(exc)
            step.last = reason
            raise self.expire(what, reason)
