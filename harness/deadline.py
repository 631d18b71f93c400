# SPDX-License-Identifier: BSD-2-Clause
"""Deadlines instead of timeouts: a caller creates one and passes it down."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

from harness import trace
from harness.errors import DeadlineExpired, HarnessError

T = TypeVar("T")


class ConditionNotMet(Exception):
    """A probe raises this with the reason why the awaited condition is not met yet."""


class Deadline:
    """A point in time, ``seconds`` from now on the monotonic clock."""

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
        """A deadline ``seconds`` from now, but not later than this one."""
        return Deadline(min(seconds, self.remaining))

    def expire(self, what: str, reason: str = "") -> HarnessError:
        """The error to raise when this deadline ends a wait for ``what``."""
        return DeadlineExpired(self.describe(what, reason))

    def describe(self, what: str, reason: str = "") -> str:
        """The duration of the wait so far, the awaited ``what``, and the last ``reason`` why it was not met."""
        because = f"; last reason: {reason}" if reason else ""
        return f"waited {time.monotonic() - self.started:.1f} s for {what}{because}"

    def wait(self, what: str, probe: Callable[[], T], interval: float = 0.1, pause: Callable[[float], object] = time.sleep) -> T:
        """Call ``probe`` until it returns instead of raising :class:`ConditionNotMet`. Returns its value.

        Between calls, ``pause`` waits for at most the given seconds: ``interval``, or the remaining time if that is less.
        Raises the error of :meth:`expire` for ``what`` with the last reason.
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
