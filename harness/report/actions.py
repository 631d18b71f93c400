# SPDX-License-Identifier: BSD-2-Clause
"""The action trace of a case, for its time line on the page and for the mail."""

from __future__ import annotations

import itertools
import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from harness import trace
from harness.report.console import Line
from harness.safetext import plain

LAST = 10
"""Actions that the mail shows."""

# Actions that a time line shows: the last ones.
_TIMELINE = 500


def load(directory: Path) -> tuple[trace.Event, ...]:
    """The events of a case; empty if it has no trace."""
    try:
        return trace.read(directory / trace.FILE)
    except OSError:
        return ()


def lines(events: tuple[trace.Event, ...], unpaused: float | None) -> list[Line]:
    """Each event as a line of the guest's time line, at its begin. ``unpaused`` is a time of the monotonic clock (s).

    Of the evidence that is gathered after a failure, one line is left.
    """
    if unpaused is None:
        return []
    inside = _inside_evidence(events)
    shown = [event for event in events if event.number not in inside and event.kind != trace.CASE]
    return [Line(event.clock - unpaused, describe(event), "action") for event in shown[-_TIMELINE:]]


def last(events: tuple[trace.Event, ...], count: int = LAST) -> list[str]:
    """The last ``count`` actions before the failure, with their time in seconds since the case began.

    An action that was repeated, such as a poll, takes one line. Only the last attempt counts: a case runs again if its host was lost.
    """
    begins = [number for number, event in enumerate(events) if event.kind == trace.CASE]
    attempt = events[begins[-1] :] if begins else events
    failed = next((number for number, event in enumerate(attempt) if event.kind == trace.EVIDENCE), len(attempt))
    before = [event for event in attempt[:failed] if event.kind != trace.CASE]
    groups = [list(group) for _, group in itertools.groupby(before, _what)]
    return [_repeated(group, attempt[0].at) for group in groups[-count:]]


def _what(event: trace.Event) -> trace.Event:
    """The event without its number, times and size: equal for a repeated action."""
    return replace(event, number=0, at=0.0, clock=0.0, seconds=float(event.ended), size=0, last="")


def _repeated(events: Sequence[trace.Event], began: float) -> str:
    """One line for equal events: the times of the first and the last, and the last's description."""
    text = f"{events[0].at - began:9.2f} s  {describe(events[-1])}"
    return text if len(events) == 1 else f"{text}  {len(events)} times, the last after {events[-1].at - began:.2f} s"


def _inside_evidence(events: tuple[trace.Event, ...]) -> set[int]:
    """The numbers of the events within a step that gathers evidence."""
    evidence = {event.number for event in events if event.kind == trace.EVIDENCE}
    inside: set[int] = set()
    for event in events:  # a parent comes before its children
        if event.parent in evidence or event.parent in inside:
            inside.add(event.number)
    return inside


def describe(event: trace.Event) -> str:
    """One line: the action, its place, duration and status, and the calling line of the case."""
    text = f"{event.what}  [{event.where}]" if event.where else event.what
    if event.kind in ("guest", "wait", trace.PAUSE, trace.TYPED):
        text = f"{event.kind}: {text}"
    text += f"  {event.seconds:.2f} s" if event.ended else "  not done"
    text += f"  {event.status}" if event.status else ""
    text += f"  last seen: {event.last}" if event.last and event.status else ""
    text += f"  ({event.caller})" if event.caller else ""
    return plain(" ".join(re.split(r"[\r\n]+", text)))
