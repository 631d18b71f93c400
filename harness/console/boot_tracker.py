# SPDX-License-Identifier: BSD-2-Clause
"""Interprets console bytes without a thread or a file: stages reached, a pending death, an overrun time budget."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

from harness.console import clean, deaths, prompts
from harness.console.clean import Cleaned, Cleaner
from harness.console.kinds import SECOND_BOOT, DeathKind
from harness.console.stages import StageReached, rarest
from harness.console.tables import ConsoleTables

# Bytes kept between chunks, because a chunk may end inside a marker. No marker's line is longer than the first number. The kept
# part begins at a line's beginning if that is at most the second number of bytes earlier.
_OVERLAP, _LINE = 512, 4096
# A report is over after this many seconds of silence, or this many seconds in all, unless it says earlier that it is over.
_QUIET, _LONGEST = 0.4, 5.0
# The same for a FreeBSD kernel that has not printed its last line yet: a slow console shows a report line by line.
_UNFINISHED_QUIET, _UNFINISHED_LONGEST = 2.0, 30.0
_UNFINISHED = ("panic", "trap")
# Uptime: 46s     Dumping 80 out of 500 MB:..20%     Dump complete     (sys/kern/kern_shutdown.c, kern_reboot())
_LAST_WORDS = re.compile(rb"^\r*(?:Uptime: |Dumping \d|Dump complete)", re.MULTILINE)
# A command's output (dmesg, a log) may quote a death or a boot. Seconds of silence after which a death, or a boot, counts anyway.
_QUOTED_QUIET, _QUOTED_BOOT = 0.8, 30.0
# Seconds, multiplied by a scale above 1. From the entry of a debugger to its prompt. Between two outputs of a debugger script,
# usually and during a dump. For a whole script.
_DEBUGGER, _SCRIPT, _DUMP, _SCRIPT_LONGEST = 15.0, 15.0, 120.0, 600.0
# KDB: enter: panic                      (sys/kern/subr_kdb.c, kdb_enter(): a debugger takes over)
# [ thread pid 1 tid 100002 ]     Stopped at      kdb_enter+0x33: movq ...
# db:0:kdb.enter.panic>  bt              (sys/ddb/db_script.c prints each command of a script so)
_DEBUGGING = re.compile(
    rb"^\r*(?:(?P<enter>KDB: enter: |\[ thread pid \d|Stopped at)|(?P<script>db:\d+:[\w.-]+> ) *(?P<command>[^\r\n]*)|(?P<ask>db> ))",
    re.MULTILINE,
)
# Debugger commands that reset or continue the machine, so the debugger prints nothing more; and those that write a dump.
_LEAVES = re.compile(rb"(?:reset|reboot|halt|continue|c|exit)\b")
_DUMPS = re.compile(rb"(?:textdump|dump|call doadump|netdump)\b")
# Prompts of a boot. After it, they count only while the guest waits at them.
_BOOT_PROMPTS = ("mountroot", "single-user")

# A kernel that prints lines makes progress, although slowly: on a busy machine the next stage may take this many times its budget. It
# counts as silent after this part of the budget.
_SLOWEST, _SILENT = 3.0, 1 / 3

NoKind = Literal[""]


@dataclass
class PendingDeath:
    """A death's first marker, at ``offset`` in the log (bytes), seen ``at`` (monotonic s). Its report may continue.

    ``prompt``: the kind of prompt that the guest waits at, or "". ``reported``: the report is complete. ``end``: offset of the next
    boot. ``kind``: set if the text alone does not tell the kind. ``unfinished``: a FreeBSD kernel has not printed its last line.
    ``patience``: seconds of silence that complete the report, 0 for the default. ``debugger``: the same while a debugger works.
    """

    at: float
    offset: int
    prompt: DeathKind | NoKind = ""
    reported: bool = False
    end: int | None = None
    kind: DeathKind | NoKind = ""
    unfinished: bool = False
    patience: float = 0.0
    debugger: float = 0.0


@dataclass(frozen=True)
class Overrun:
    """No next stage for ``seconds`` after ``stage``: more than the stage's budget, or three times that for a guest that prints lines."""

    stage: str
    seconds: float


@dataclass(frozen=True)
class OpenPrompt:
    """The output ends with a prompt at ``offset``. After ``patience`` seconds of silence the guest waits for an answer."""

    kind: DeathKind
    offset: int
    patience: float


class BootTracker:
    """Follows a boot, chunk by chunk.

    ``first_line`` and ``scale``: see :class:`ConsoleReader`. ``running``: the guest booted before the console was attached.
    """

    def __init__(self, tables: ConsoleTables, *, first_line: float, scale: float, running: bool = False) -> None:
        self._tables, self._first_line, self._scale = tables, first_line, scale
        self._table = tables.stages
        self._names = tuple(stage.name for stage in self._table)
        # Each with the byte of its literal to search for first.
        self._boots = tuple((rarest(boot.literal), boot) for boot in tables.boots)
        self._markers = tuple((rarest(marker.literal), marker) for marker in tables.all_markers)
        self._booted_markers = tuple((byte, marker) for byte, marker in self._markers if marker.kind not in _BOOT_PROMPTS)
        self._prompt_markers = tuple(marker for marker in tables.all_markers if marker.prompt)
        self._prompt_kinds = frozenset(marker.kind for marker in self._prompt_markers)
        self._cleaner, self._sample = Cleaner(), b""
        self._sampling, self._sampled = True, 0
        self.begin_boot(0.0, 0, running=running)

    def begin_boot(self, now: float, offset: int, *, running: bool = False) -> None:
        """Forget everything before ``offset``: a new boot begins there."""
        self.boot_offset = self.offset = offset
        self.stages: tuple[StageReached, ...] = ()
        self.budgets_on = True
        self.last_byte = self.progress = now
        self._running = running
        self._quoted: bytes | None = None
        if self._sampling:
            self._sample = b""
        self._begin_window()

    def _begin_window(self) -> None:
        self.pending: PendingDeath | None = None
        self._window, self._torn = b"", False
        self._prompt: OpenPrompt | None = None
        self._banner: int | None = None
        self._unended: int | None = None
        self._rejected = self.boot_offset

    def quote(self, end: bytes | None) -> None:
        """Treat deaths and boots as quoted output until ``end`` appears; None stops this."""
        self._quoted = end

    @property
    def stage(self) -> str:
        return self.stages[-1].name if self.stages else ""

    def stage_at(self, offset: int) -> str:
        """The last stage reached before ``offset``."""
        return next((reached.name for reached in reversed(self.stages) if reached.offset < offset), "")

    def clean(self, data: bytes) -> bytes:
        """``data`` without the collector's prefix and escape sequences. It must begin at a line's beginning."""
        return self._cleaner.text(data)

    def cleaned(self, data: bytes) -> Cleaned:
        """Like :meth:`clean`, with the original offsets of the bytes."""
        return self._cleaner.clean(data)

    def stuck(self, text: bytes) -> prompts.Stuck | None:
        """How this boot ended at a prompt, judged by ``text``: the console's last bytes, cleaned."""
        return prompts.stuck(text, lambda until: not self._reached(until))

    def feed(self, chunk: bytes, now: float) -> tuple[StageReached, ...]:
        """Process the next bytes. Returns the stages they reached."""
        self.offset += len(chunk)
        self.last_byte = now
        known = {stage.name for stage in self.stages}
        if self._sampling and self._detect_prefix(chunk):
            self._rescan(now)
        else:
            self._scan(self._window + chunk, now)
        return tuple(stage for stage in self.stages if stage.name not in known)

    def _rescan(self, now: float) -> None:
        """Scan the stream's first lines again: their prefix is known only now."""
        self._begin_window()
        self.stages = ()
        self._scan(self._sample, now)

    def _scan(self, raw: bytes, now: float) -> None:
        base = self.offset - len(raw)
        cleaned = self._cleaner.clean(raw)
        # While a command's output is read, everything up to its end marker may be a quote.
        unquoted = cleaned.text.find(self._quoted) if self._quoted is not None else -1
        if unquoted >= 0:
            self.pending = self._banner = None
        self._find_stages(cleaned, base, now)
        self._find_death(cleaned, base, now, unquoted)
        self._find_boot(cleaned, base, now, unquoted)
        self._find_prompt(cleaned, base)
        self._trim_window(raw)

    def check(self, now: float, *, ended: bool = False) -> PendingDeath | Overrun | None:
        """A death whose report is complete, or an overrun budget, at the time ``now``. ``ended``: no further output will come."""
        quiet = float("inf") if ended else now - self.last_byte
        if self._sampling and quiet >= prompts.AT_ONCE and self._detect_prefix(b"", silent=True):
            self._rescan(now)
        prompt = self._prompt
        counts = prompt is not None and (self.pending is None or prompt.kind in self._prompt_kinds)
        if prompt is not None and counts and quiet >= prompt.patience and (self._quoted is None or quiet > _QUOTED_QUIET):
            if self.pending is None:
                self.pending = PendingDeath(now, prompt.offset)
            self.pending.prompt = prompt.kind
            return self.pending
        if self._banner is not None and self.pending is None and quiet > _QUIET and self._only_banner():
            self.pending = PendingDeath(now, self._banner, reported=True, kind=SECOND_BOOT)
        if self.pending is not None:
            return self.pending if self._report_over(self.pending, now, quiet) else None
        if self._unended is not None and quiet > _QUIET:
            self.pending = PendingDeath(now, self._unended)
            return self.pending
        return self.overrun(now)

    def overrun(self, now: float) -> Overrun | None:
        """The stage budget that is overrun at the time ``now``."""
        if self._running or not self.budgets_on or (self.stages and self.stages[-1].name == self._table[-1].name):
            return None
        budget = self._first_line
        if self.stages:
            budget = next(stage.budget for stage in self._table if stage.name == self.stages[-1].name)
        budget *= self._scale
        if now - self.last_byte < budget * _SILENT:
            budget *= _SLOWEST
        taken = now - self.progress
        return Overrun(self.stage or "start", taken) if taken > budget else None

    def retract(self) -> None:
        """Drop the pending death, which was a false alarm. Complete lines up to here are not searched for a death again."""
        if self.pending is not None and self.pending.end is not None:
            self.pending = PendingDeath(self.pending.at, self.pending.end, reported=True, kind=SECOND_BOOT)
            return
        if self.pending is not None:
            unfinished = self.offset - len(self._window) + self._window.rfind(b"\n") + 1
            self._rejected = max(self.pending.offset + 1, unfinished)
        self.pending = self._unended = None

    def _report_over(self, pending: PendingDeath, now: float, quiet: float) -> bool:
        if self._quoted is not None:
            # A log quotes the first lines of a boot, too, and the command that prints it may continue after a silence.
            return quiet > (_QUOTED_BOOT * max(1.0, self._scale) if pending.kind == SECOND_BOOT else _QUOTED_QUIET)
        if pending.reported:
            return True
        stretch = max(1.0, self._scale)
        if pending.debugger:
            return quiet > pending.debugger * stretch or now - pending.at > _SCRIPT_LONGEST * stretch
        if pending.unfinished:
            return quiet > _UNFINISHED_QUIET * stretch or now - pending.at > _UNFINISHED_LONGEST * stretch
        patience = pending.patience or _QUIET
        return quiet > patience or now - pending.at > max(_LONGEST, 4 * patience)

    # -- scanning -----------------------------------------------------------------------------------------------------

    def _detect_prefix(self, chunk: bytes, *, silent: bool = False) -> bool:
        """Search the stream's first lines for a collector's prefix. Returns whether the prefix changed.

        ``silent``: no output comes at the moment, so an incomplete last line counts.
        """
        self._sample += chunk
        lines = self._sample.count(b"\n")
        self._sampling = len(self._sample) < clean.SAMPLE and lines < clean.LINES
        if b"\n" not in chunk and lines > 1 and (not silent or len(self._sample) == self._sampled):
            return False
        self._sampled = len(self._sample)
        found = clean.prefix(self._sample)
        before = self._cleaner.prefix
        if (found and found.pattern) == (before and before.pattern):
            return False
        self._cleaner = Cleaner(found)
        return True

    def _trim_window(self, raw: bytes) -> None:
        cut = len(raw) - _OVERLAP
        if cut <= 0:
            self._window = raw
            return
        begin = raw.rfind(b"\n", 0, cut) + 1
        torn = cut - begin > _LINE or (begin == 0 and self._torn)
        self._window, self._torn = raw[cut if torn else begin :], torn

    def _first(self, pattern: re.Pattern[bytes], cleaned: Cleaned, base: int, earliest: int) -> re.Match[bytes] | None:
        """The first match at or after the offset ``earliest``."""
        # If the window begins inside a line, its first byte may look like a line's beginning.
        if self._torn:
            earliest = max(earliest, base + 1)
        return next((match for match in pattern.finditer(cleaned.text) if base + cleaned.raw(match.start()) >= earliest), None)

    def _reached(self, name: str) -> bool:
        """Whether the boot is at the stage ``name`` or later; False if the table has no such stage."""
        if self._running or name not in self._names:
            return self._running
        return any(self._names.index(stage.name) >= self._names.index(name) for stage in self.stages[-1:])

    def _find_stages(self, cleaned: Cleaned, base: int, now: float) -> None:
        if self._running or (self.pending is not None and (self.pending.end is not None or self.pending.kind == SECOND_BOOT)):
            return
        floor = self._names.index(self.stage) if self.stages else -1
        found: list[tuple[int, int]] = []
        for n in range(floor + 1, len(self._table)):
            stage = self._table[n]
            if stage.literal in cleaned.text and (match := self._first(stage.pattern, cleaned, base, self.boot_offset)):
                found.append((base + cleaned.raw(match.start()), n))
        # Take them in the order of the output: a stage that is printed after a later one belongs to another boot.
        for offset, n in sorted(found):
            if n > floor:
                floor = n
                self.stages += (StageReached(self._names[n], now, offset),)
                self.progress = now
                # The boot continued, so the message of the firmware was not its last.
                if self.pending is not None and self.pending.kind in prompts.KINDS and self.stage != "firmware":
                    self.pending = None

    def _find_boot(self, cleaned: Cleaned, base: int, now: float, unquoted: int) -> None:
        """Find the first line of a kernel or loader after this boot has reached its kernel."""
        if not self._reached("kernel"):
            return
        first = next((stage.offset for stage in self.stages if stage.name == "kernel"), self.boot_offset - 1)
        earliest = max(first + 1, base + cleaned.raw(max(0, unquoted)))
        if banner := self._tables.banner:
            if banner.stage.literal in cleaned.text and (match := self._first(banner.stage.pattern, cleaned, base, earliest)):
                self._banner = base + cleaned.raw(match.start())
            if self._banner is not None and self._first(banner.next_line, cleaned, base, self._banner):
                self._note_second_boot(self._banner, now)
        for byte, boot in self._boots:
            if byte not in cleaned.text or boot.literal not in cleaned.text:
                continue
            match = self._first(boot.pattern, cleaned, base, earliest)
            if match and not self._replayed(cleaned.text, match.start()):
                self._note_second_boot(base + cleaned.raw(match.start()), now)

    def _note_second_boot(self, offset: int, now: float) -> None:
        if self.pending is None or offset < self.pending.offset:
            self.pending = PendingDeath(now, offset, reported=True, kind=SECOND_BOOT)
        elif offset > self.pending.offset and (self.pending.end is None or offset < self.pending.end):
            self.pending.end, self.pending.reported = offset, True
        else:
            return
        self.stages = tuple(stage for stage in self.stages if stage.offset < offset)

    def _replayed(self, text: bytes, at: int) -> bool:
        """Whether the kernel prints its log again from ``at`` on."""
        replayed = self._tables.replayed
        return replayed is not None and replayed.search(text, max(0, at - _OVERLAP), at) is not None

    def _only_banner(self) -> bool:
        """Whether the output since the kernel's banner is the banner only."""
        start = len(self._window) - (self.offset - (self._banner or 0))
        banner = self._tables.banner
        return banner is not None and start >= 0 and banner.alone.fullmatch(self._cleaner.text(self._window[start:])) is not None

    def _find_death(self, cleaned: Cleaned, base: int, now: float, unquoted: int) -> None:
        window = cleaned.text
        earliest = max(self.boot_offset, self._rejected, base + cleaned.raw(max(0, unquoted)))
        if self.pending:
            earliest = self.pending.offset
        self._unended = None
        for byte, marker in self._booted_markers if self._reached(self._names[-1]) else self._markers:
            if byte not in window or marker.literal not in window:
                continue
            match = self._first(marker.pattern, cleaned, base, earliest)
            if not match:
                continue
            offset = base + cleaned.raw(match.start())
            # An incomplete line may turn out to be harmless, so it counts only after a silence.
            if not marker.prompt and b"\n" not in window[match.end() - 1 :]:
                self._unended = min(offset, self._unended or offset)
                continue
            if self.pending is None or offset < self.pending.offset:
                self.pending = PendingDeath(now, offset, unfinished=marker.kind in _UNFINISHED)
        if self.pending is not None and not self.pending.reported:
            self._follow_report(self.pending, cleaned, base)

    def _follow_report(self, pending: PendingDeath, cleaned: Cleaned, base: int) -> None:
        """Update how far the report has come, and whether a debugger is working."""
        begin = cleaned.place(max(0, pending.offset - base))
        pending.reported = deaths.report_ended(cleaned.text[begin:])
        if self._first(_LAST_WORDS, cleaned, base, pending.offset):
            pending.unfinished = False
        for match in _DEBUGGING.finditer(cleaned.text, begin):
            if match["ask"]:
                pending.debugger = 0.0
            elif match["enter"]:
                pending.debugger = _DEBUGGER
            elif _LEAVES.match(match["command"]):
                pending.debugger, pending.unfinished = 0.0, False
            else:
                pending.debugger = _DUMP if _DUMPS.match(match["command"]) else _SCRIPT

    def _find_prompt(self, cleaned: Cleaned, base: int) -> None:
        """Find a prompt at the end of the output, or a firmware's last message."""
        self._prompt = None
        text = cleaned.text
        last_line = max(text.rfind(b"\n"), text.rfind(b"\r")) + 1
        if last_line or not self._torn:
            for marker in self._prompt_markers:
                match = marker.pattern.match(text, last_line)
                if match and not text[match.end() :].strip(b" ") and base + cleaned.raw(last_line) >= self.boot_offset:
                    self._prompt = OpenPrompt(marker.kind, base + cleaned.raw(last_line), prompts.AT_ONCE)
                    return
        if self._reached(self._names[-1]):
            return
        stuck = self.stuck(text)
        if stuck is None:
            return
        offset = base + cleaned.raw(stuck.at)
        if stuck.waits:
            self._prompt = OpenPrompt(stuck.kind, offset, stuck.patience)
        elif self.pending is None:
            self.pending = PendingDeath(self.last_byte, offset, kind=stuck.kind, patience=stuck.patience)
