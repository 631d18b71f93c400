# SPDX-License-Identifier: BSD-2-Clause
"""Diagnoses a pending death: reads the guest's report from the log, queries its debugger, and builds the excerpt."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import replace

from harness.console import deaths, prompts, reasons
from harness.console.backtrace import Symbols
from harness.console.boot_tracker import BootTracker, PendingDeath
from harness.console.deaths import Death
from harness.console.debugger import Console, Debugger, script_answers
from harness.console.kinds import SECOND_BOOT
from harness.console.tables import ConsoleTables
from harness.console.text import decode, report_excerpt

# Kinds of death whose reason is printed before their marker, and the number of bytes before it to search.
_REASON_BEFORE, _LEAD = ("mountroot", "single-user", "crash"), 8192
# If a report is longer than twice this (bytes), its middle is left out: a guest may print without end.
_REPORT = 2 << 20
# Lines of an excerpt before the report; the first number is for a prompt, because its reason is printed before it.
_LINES_BEFORE_PROMPT, _LINES_BEFORE = 30, 6


class Diagnosis:
    """Turns pending deaths of ``tracker`` into deaths.

    ``debugger`` is None if the dead guest must not be queried. ``symbols`` reads the guest's kernel file; it is called only if
    a backtrace lacks names. ``stretch`` (1 or more) multiplies the seconds of silence.
    """

    def __init__(
        self,
        console: Console,
        tracker: BootTracker,
        debugger: Debugger | None,
        tables: ConsoleTables,
        *,
        symbols: Callable[[], Symbols | None] | None,
        stretch: float,
    ) -> None:
        self._console, self._tracker, self._debugger = console, tracker, debugger
        self._tables, self._symbols, self._stretch = tables, symbols, stretch

    def diagnose(self, pending: PendingDeath, *, final: bool) -> Death | None:
        """The death, or None if it is in doubt or none. Then the tracker continues.

        ``final``: no further output will come, so an unconfirmed report counts.
        """
        lead = self._line_start(max(self._console.boot_offset, pending.offset - _LEAD))
        data = self._report(lead, self._console.offset if pending.end is None else pending.end)
        death = self._classify(pending, data, pending.offset - lead)
        if death is None:
            self._tracker.retract()
            return None
        quiet = time.monotonic() - self._tracker.last_byte
        if not final and quiet < death.patience * self._stretch and (pending.end is None or math.isinf(death.patience)):
            if pending.end is not None:
                self._tracker.retract()
            return None
        cut = death.begin
        answers = script_answers(decode(self._tracker.clean(data[cut:])))
        if self._debugger is not None:
            answers += self._debugger.query(pending.prompt, {command for command, _ in answers})
        death = deaths.with_backtrace(death, dict(answers).get("bt", ""), self._tables)
        if deaths.lacks_names(death):
            death = deaths.with_names(death, self._symbols() if self._symbols is not None else None, self._tables)
        before = _LINES_BEFORE_PROMPT if death.kind == pending.prompt or pending.kind else _LINES_BEFORE
        text = report_excerpt(decode(data[:cut]), decode(data[cut:]), before)
        return replace(death, excerpt=text, answers=answers)

    def _report(self, begin: int, end: int) -> bytes:
        """The log from ``begin`` to ``end``; of a long report the first and the last :data:`_REPORT` bytes."""
        if end - begin <= 2 * _REPORT:
            return self._console.since(begin, end - begin)
        return self._console.since(begin, _REPORT) + b"\n" + self._console.since(end - _REPORT, _REPORT)

    def _line_start(self, offset: int) -> int:
        """The start of the line that contains the byte before ``offset``, at most 512 bytes back."""
        begin = max(self._console.boot_offset, offset - 512)
        return begin + self._console.since(begin, offset - begin).rfind(b"\n") + 1 if offset > begin else offset

    def _classify(self, pending: PendingDeath, data: bytes, cut: int) -> Death | None:
        """The death that ``data`` reports; its marker is at ``cut``."""
        clean, stage = self._tracker.clean, self._tracker.stage_at(pending.offset)
        if pending.kind == SECOND_BOOT:
            return Death(SECOND_BOOT, reasons.second_boot(decode(clean(data[:cut]))), stage, begin=cut)
        if prompts.KINDS & {pending.kind, pending.prompt} and (stuck := self._tracker.stuck(clean(data))):
            return Death(stuck.kind, stuck.message, stage, begin=cut)
        line = data.rfind(b"\n", 0, cut) + 1
        report = self._tracker.cleaned(data[line:])
        death = deaths.classify(report.text, self._tables, stage, self._tracker.stuck)
        if death is None:
            return None
        begin = line + report.raw(death.begin)
        if death.kind in _REASON_BEFORE:
            death = deaths.classify(clean(data), self._tables, stage, self._tracker.stuck) or death
        return replace(death, begin=begin)
