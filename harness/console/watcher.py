"""What a console's bytes mean, without a thread or a file: stages reached, a death on its way, a budget overrun."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from harness.console import deaths
from harness.console.deaths import MARKERS
from harness.console.stages import Stage, StageReached

# A marker may be cut by a chunk's end; no marker's line is longer than this.
_OVERLAP = 512
# A death's report is over when it says so, or when nothing came for this long, or after this much time in all.
_QUIET, _LONGEST = 0.4, 5.0
# While the output of a command is read, words of a death may be quoted (dmesg, a log): then only silence counts.
_QUOTED_QUIET = 0.8


@dataclass
class Dying:
    """A death's first marker was seen at ``offset`` (bytes into the log), at ``at`` (monotonic s).

    ``prompt`` names the prompt that the guest stands at since, or is empty.
    """

    at: float
    offset: int
    prompt: str = ""
    reported: bool = False


@dataclass(frozen=True)
class Overrun:
    """No progress within a stage's budget of ``seconds``."""

    stage: str
    seconds: float


class Watcher:
    """Fed with chunks and their times. Knows the stages reached since the boot began and whether the guest is dying."""

    def __init__(self, stages: Sequence[Stage], *, first_line: float, scale: float) -> None:
        self._table, self._first_line, self._scale = tuple(stages), first_line, scale
        self.begin_boot(0.0, 0)

    def begin_boot(self, now: float, offset: int) -> None:
        """A new boot begins on this console: what was seen before no longer counts."""
        self.boot_offset = self.offset = offset
        self.stages: tuple[StageReached, ...] = ()
        self.dying: Dying | None = None
        self.watching = True
        self.last_byte = self.progress = now
        self._window = b""
        self._quoted: bytes | None = None
        self._unended: int | None = None
        self._judged = offset

    def quote(self, end: bytes | None) -> None:
        """Until ``end`` is seen, words of a death may be quoted output; None ends it."""
        self._quoted = end

    @property
    def stage(self) -> str:
        return self.stages[-1].name if self.stages else ""

    def feed(self, chunk: bytes, now: float) -> tuple[StageReached, ...]:
        """Take the next bytes. Returns the stages they reached."""
        window = self._window + chunk
        base = self.offset - len(self._window)
        self.offset += len(chunk)
        self.last_byte = now
        fresh = self._look_for_stages(window, base, now)
        self._look_for_death(window, base, now)
        self._window = window[-_OVERLAP:]
        return fresh

    def due(self, now: float) -> Dying | Overrun | None:
        """A death whose report is over, or a budget that is overrun, at the time ``now``."""
        if self.dying is not None:
            quiet = now - self.last_byte
            if self._quoted is not None:
                over = quiet > _QUOTED_QUIET
            else:
                over = bool(self.dying.prompt) or self.dying.reported or quiet > _QUIET or now - self.dying.at > _LONGEST
            return self.dying if over else None
        if self._unended is not None and now - self.last_byte > _QUIET:
            return self.last_words(now)
        return self.overrun(now)

    def overrun(self, now: float) -> Overrun | None:
        """A budget that is overrun at the time ``now``."""
        if not self.watching or (self.stages and self.stages[-1].name == self._table[-1].name):
            return None
        budget = self._first_line
        if self.stages:
            budget = next(stage.budget for stage in self._table if stage.name == self.stages[-1].name)
        budget *= self._scale
        return Overrun(self.stage or "start", budget) if now - self.progress > budget else None

    def last_words(self, now: float) -> Dying | None:
        """The death on its way; also one whose first line has no end, when the console is silent or has ended."""
        if self.dying is None and self._unended is not None:
            self.dying = Dying(now, self._unended)
        return self.dying

    def retract(self) -> None:
        """The lines that looked like a death are none: all that has an end by now is not looked at again."""
        if self.dying is not None:
            unfinished = self.offset - len(self._window) + self._window.rfind(b"\n") + 1
            self._judged = max(self.dying.offset + 1, unfinished)
        self.dying = self._unended = None

    def _look_for_stages(self, window: bytes, base: int, now: float) -> tuple[StageReached, ...]:
        done = {reached.name for reached in self.stages}
        floor = max((n for n, stage in enumerate(self._table) if stage.name in done), default=-1)
        fresh = []
        for stage in self._table[floor + 1 :]:
            if stage.literal not in window:
                continue
            match = _first(stage.pattern, window, base, self.boot_offset)
            if match:
                fresh.append(StageReached(stage.name, now, base + match.start()))
                self.progress = now
        self.stages += tuple(fresh)
        return tuple(fresh)

    def _look_for_death(self, window: bytes, base: int, now: float) -> None:
        if self.dying is not None and self._quoted is not None and self._quoted in window:
            self.dying = None
        earliest = self.dying.offset if self.dying else max(self.boot_offset, self._judged)
        self._unended = None
        for marker in MARKERS:
            if not marker.may_be_in(window):
                continue
            match = _first(marker.pattern, window, base, earliest)
            if not match:
                continue
            # A line that is not ended yet may still go on to be something else, unless nothing more comes.
            if not marker.prompt and b"\n" not in window[match.end() - 1 :]:
                self._unended = min(base + match.start(), self._unended or self.offset)
                continue
            if self._quoted is not None and self._quoted in window[match.end() :]:
                continue
            if self.dying is None or base + match.start() < self.dying.offset:
                self.dying = Dying(now, base + match.start(), self.dying.prompt if self.dying else "")
            if marker.prompt:
                self.dying.prompt = marker.kind
        if self.dying is not None and not self.dying.reported:
            start = max(0, self.dying.offset - base)
            self.dying.reported = deaths.report_ended(window[start:])


def _first(pattern: re.Pattern[bytes], window: bytes, base: int, earliest: int) -> re.Match[bytes] | None:
    """The first match that begins at or after the offset ``earliest``."""
    return next((m for m in pattern.finditer(window) if base + m.start() >= earliest), None)
