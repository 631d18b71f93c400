# SPDX-License-Identifier: BSD-2-Clause
"""What a console's bytes mean, without a thread or a file: stages reached, a death on its way, a budget overrun."""

from __future__ import annotations

import re
from dataclasses import dataclass

from harness.console import clean, deaths, prompts
from harness.console.clean import Cleaned, Cleaner
from harness.console.markers import Marker
from harness.console.stages import StageReached, rarest
from harness.console.tables import ConsoleTables

# A marker may be cut by a chunk's end; no marker's line is longer than this. Kept from a line's beginning on, if that is near.
_OVERLAP, _LINE = 512, 4096
# A death's report is over when it says so, or when nothing came for this long, or after this much time in all.
_QUIET, _LONGEST = 0.4, 5.0
# The same for a FreeBSD kernel that has not said its last words: a slow console brings them line by line.
_UNFINISHED_QUIET, _UNFINISHED_LONGEST = 2.0, 30.0
_UNFINISHED = ("panic", "trap")
# Uptime: 46s     Dumping 80 out of 500 MB:..20%     Dump complete     (sys/kern/kern_shutdown.c, kern_reboot())
_LAST_WORDS = re.compile(rb"^\r*(?:Uptime: |Dumping \d|Dump complete)", re.MULTILINE)
# While the output of a command is read, words of a death may be quoted (dmesg, a log): then only silence counts.
_QUOTED_QUIET, _QUOTED_BOOT = 0.8, 30.0
# A debugger that was entered shows its prompt within this; a script in it prints something within this, or within that where it
# writes a dump; and is over after so much time in all. Seconds, times a scale above 1.
_DEBUGGER, _SCRIPT, _DUMP, _SCRIPT_LONGEST = 15.0, 15.0, 120.0, 600.0
# KDB: enter: panic                      (sys/kern/subr_kdb.c, kdb_enter(): a debugger takes over)
# [ thread pid 1 tid 100002 ]     Stopped at      kdb_enter+0x33: movq ...
# db:0:kdb.enter.panic>  bt              (sys/ddb/db_script.c prints each command of a script so)
_DEBUGGING = re.compile(
    rb"^\r*(?:(?P<enter>KDB: enter: |\[ thread pid \d|Stopped at)|(?P<script>db:\d+:[\w.-]+> ) *(?P<command>[^\r\n]*)|(?P<ask>db> ))",
    re.MULTILINE,
)
# Commands after which the debugger prints nothing more: it resets the machine, or lets it go on.
_LEAVES = re.compile(rb"(?:reset|reboot|halt|continue|c|exit)\b")
_DUMPS = re.compile(rb"(?:textdump|dump|call doadump|netdump)\b")
# Prompts that a guest which has booted does not print.
_BEFORE_LOGIN = ("mountroot", "single-user")

SECOND_BOOT = "second-boot"


def script_answers(report: str) -> tuple[tuple[str, str], ...]:
    """What the commands of a debugger's script printed: (command, output)."""
    # db:0:kdb.enter.panic>  bt
    parts = re.split(r"^db:\d+:[\w.-]+> *(.*)$", report, flags=re.MULTILINE)
    # Nothing after the prompt of a debugger whose script has ended is the script's.
    return tuple(
        (command.strip(), re.split(r"^db> ", output, flags=re.MULTILINE)[0].strip("\n"))
        for command, output in zip(parts[1::2], parts[2::2], strict=True)
    )


@dataclass
class Dying:
    """A death's first marker was seen at ``offset`` (bytes into the log), at ``at`` (monotonic s).

    ``prompt`` names the prompt that the guest stands at, or is empty. ``end`` is where the next boot begins in the log. ``kind``
    is that of a death that is known by more than its text. ``unfinished``: a kernel reports, and has not come to its end.
    ``patience``: seconds of silence after which it is over, 0 for the usual; ``debugger``: those of a debugger that is at work.
    """

    at: float
    offset: int
    prompt: str = ""
    reported: bool = False
    end: int | None = None
    kind: str = ""
    unfinished: bool = False
    patience: float = 0.0
    debugger: float = 0.0


@dataclass(frozen=True)
class Overrun:
    """No progress within a stage's budget of ``seconds``."""

    stage: str
    seconds: float


@dataclass(frozen=True)
class Waiting:
    """The output ends with the prompt ``kind``, which begins at ``offset``; it waits for an answer after ``patience`` s."""

    kind: str
    offset: int
    patience: float


class Watcher:
    """Fed with chunks and their times. Knows the stages reached since the boot began and whether the guest is dying.

    ``running``: the guest has booted before the console was attached.
    """

    def __init__(self, tables: ConsoleTables, *, first_line: float, scale: float, running: bool = False) -> None:
        self._tables, self._first_line, self._scale = tables, first_line, scale
        self._table = tables.stages
        self._names = tuple(stage.name for stage in self._table)
        self._boots = tuple((rarest(boot.literal), boot) for boot in tables.boots)
        # With the byte of each literal that is looked for first.
        self._markers = tuple((rarest(marker.literal), marker) for marker in tables.all_markers)
        # Those that a guest which has booted can show; another prompt is seen where it waits.
        self._booted_markers = tuple((byte, marker) for byte, marker in self._markers if marker.kind not in _BEFORE_LOGIN)
        # The prompts with a marker of their own.
        self._asking: tuple[Marker, ...] = tuple(marker for marker in tables.all_markers if marker.prompt)
        self._asking_kinds = frozenset(marker.kind for marker in self._asking)
        self._cleaner, self._sample = Cleaner(), b""
        self._sampling, self._learned = True, 0
        self.begin_boot(0.0, 0, running=running)

    def begin_boot(self, now: float, offset: int, *, running: bool = False) -> None:
        """A new boot begins on this console: what was seen before no longer counts."""
        self.boot_offset = self.offset = offset
        self.stages: tuple[StageReached, ...] = ()
        self.watching = True
        self.last_byte = self.progress = now
        self._running = running
        self._quoted: bytes | None = None
        if self._sampling:
            self._sample = b""
        self._begin_window()

    def _begin_window(self) -> None:
        self.dying: Dying | None = None
        self._window, self._torn = b"", False
        self._waiting: Waiting | None = None
        self._banner: int | None = None
        self._unended: int | None = None
        self._judged = self.boot_offset

    def quote(self, end: bytes | None) -> None:
        """Until ``end`` is seen, words of a death may be quoted output; None ends it."""
        self._quoted = end

    @property
    def stage(self) -> str:
        return self.stages[-1].name if self.stages else ""

    def stage_at(self, offset: int) -> str:
        """The stage that was reached last before ``offset``."""
        return next((reached.name for reached in reversed(self.stages) if reached.offset < offset), "")

    def clean(self, data: bytes) -> bytes:
        """``data`` of this console, which begins with a line, without its prefix and escapes."""
        return self._cleaner.text(data)

    def seen(self, data: bytes) -> Cleaned:
        """As :meth:`clean`, with the places of its bytes."""
        return self._cleaner.clean(data)

    def stuck(self, text: bytes) -> prompts.Stuck | None:
        """How this boot has ended by ``text``, the console's last bytes (cleaned): at a prompt that nobody answers."""
        return prompts.stuck(text, lambda until: not self._reached(until))

    def feed(self, chunk: bytes, now: float) -> tuple[StageReached, ...]:
        """Take the next bytes. Returns the stages they reached."""
        self.offset += len(chunk)
        self.last_byte = now
        known = {stage.name for stage in self.stages}
        if self._sampling and self._learn(chunk):
            self._look_again(now)
        else:
            self._look(self._window + chunk, now)
        return tuple(stage for stage in self.stages if stage.name not in known)

    def _look_again(self, now: float) -> None:
        """At the stream's first lines, of which the prefix is known only now."""
        self._begin_window()
        self.stages = ()
        self._look(self._sample, now)

    def _look(self, raw: bytes, now: float) -> None:
        base = self.offset - len(raw)
        seen = self._cleaner.clean(raw)
        # Up to the end of a command's output that is read, all may be quoted; it may be so on, as long as that has not come.
        unquoted = seen.text.find(self._quoted) if self._quoted is not None else -1
        if unquoted >= 0:
            self.dying = self._banner = None
        self._look_for_stages(seen, base, now)
        self._look_for_death(seen, base, now, unquoted)
        self._look_for_boot(seen, base, now, unquoted)
        self._look_for_prompt(seen, base)
        self._keep(raw)

    def deadline(self, now: float, *, ended: bool = False) -> Dying | Overrun | None:
        """A death whose report is over, or a budget that is overrun, at the time ``now``. ``ended``: nothing more will come."""
        quiet = float("inf") if ended else now - self.last_byte
        if self._sampling and quiet >= prompts.AT_ONCE and self._learn(b"", silent=True):
            self._look_again(now)
        waiting = self._waiting
        asks = waiting is not None and (self.dying is None or waiting.kind in self._asking_kinds)
        if waiting is not None and asks and quiet >= waiting.patience and (self._quoted is None or quiet > _QUOTED_QUIET):
            if self.dying is None:
                self.dying = Dying(now, waiting.offset)
            self.dying.prompt = waiting.kind
            return self.dying
        if self._banner is not None and self.dying is None and quiet > _QUIET and self._only_banner():
            self.dying = Dying(now, self._banner, reported=True, kind=SECOND_BOOT)
        if self.dying is not None:
            return self.dying if self._over(self.dying, now, quiet) else None
        if self._unended is not None and quiet > _QUIET:
            self.dying = Dying(now, self._unended)
            return self.dying
        return self.overrun(now)

    def overrun(self, now: float) -> Overrun | None:
        """A budget that is overrun at the time ``now``."""
        if self._running or not self.watching or (self.stages and self.stages[-1].name == self._table[-1].name):
            return None
        budget = self._first_line
        if self.stages:
            budget = next(stage.budget for stage in self._table if stage.name == self.stages[-1].name)
        budget *= self._scale
        return Overrun(self.stage or "start", budget) if now - self.progress > budget else None

    def retract(self) -> None:
        """The lines that looked like a death are none: all that has an end by now is not looked at again."""
        if self.dying is not None and self.dying.end is not None:
            self.dying = Dying(self.dying.at, self.dying.end, reported=True, kind=SECOND_BOOT)
            return
        if self.dying is not None:
            unfinished = self.offset - len(self._window) + self._window.rfind(b"\n") + 1
            self._judged = max(self.dying.offset + 1, unfinished)
        self.dying = self._unended = None

    def _over(self, dying: Dying, now: float, quiet: float) -> bool:
        if self._quoted is not None:
            # A log has a boot's first words, too, and the command that prints it may go on in silence.
            return quiet > (_QUOTED_BOOT * max(1.0, self._scale) if dying.kind == SECOND_BOOT else _QUOTED_QUIET)
        if dying.reported:
            return True
        stretch = max(1.0, self._scale)
        if dying.debugger:
            return quiet > dying.debugger * stretch or now - dying.at > _SCRIPT_LONGEST * stretch
        if dying.unfinished:
            return quiet > _UNFINISHED_QUIET * stretch or now - dying.at > _UNFINISHED_LONGEST * stretch
        patience = dying.patience or _QUIET
        return quiet > patience or now - dying.at > max(_LONGEST, 4 * patience)

    # -- what the output shows ----------------------------------------------------------------------------------------

    def _learn(self, chunk: bytes, *, silent: bool = False) -> bool:
        """Look for a collector's prefix in the stream's first lines. Returns whether another one than before is found.

        ``silent``: nothing more comes for now, so the last line counts as it is.
        """
        self._sample += chunk
        lines = self._sample.count(b"\n")
        self._sampling = len(self._sample) < clean.SAMPLE and lines < clean.LINES
        if b"\n" not in chunk and lines > 1 and (not silent or len(self._sample) == self._learned):
            return False
        self._learned = len(self._sample)
        found = clean.prefix(self._sample)
        before = self._cleaner.prefix
        if (found and found.pattern) == (before and before.pattern):
            return False
        self._cleaner = Cleaner(found)
        return True

    def _keep(self, raw: bytes) -> None:
        cut = len(raw) - _OVERLAP
        if cut <= 0:
            self._window = raw
            return
        begin = raw.rfind(b"\n", 0, cut) + 1
        torn = cut - begin > _LINE or (begin == 0 and self._torn)
        self._window, self._torn = raw[cut if torn else begin :], torn

    def _first(self, pattern: re.Pattern[bytes], seen: Cleaned, base: int, earliest: int) -> re.Match[bytes] | None:
        """The first match that begins at or after the offset ``earliest``."""
        # Where the window begins within a line, nothing can be said about its first byte.
        if self._torn:
            earliest = max(earliest, base + 1)
        return next((match for match in pattern.finditer(seen.text) if base + seen.raw(match.start()) >= earliest), None)

    def _reached(self, name: str) -> bool:
        """Whether the boot is at the stage ``name`` or beyond; a table without it knows nothing of it."""
        if self._running or name not in self._names:
            return self._running
        return any(self._names.index(stage.name) >= self._names.index(name) for stage in self.stages[-1:])

    def _look_for_stages(self, seen: Cleaned, base: int, now: float) -> None:
        if self._running or (self.dying is not None and (self.dying.end is not None or self.dying.kind == SECOND_BOOT)):
            return
        floor = self._names.index(self.stage) if self.stages else -1
        found: list[tuple[int, int]] = []
        for n in range(floor + 1, len(self._table)):
            stage = self._table[n]
            if stage.literal in seen.text and (match := self._first(stage.pattern, seen, base, self.boot_offset)):
                found.append((base + seen.raw(match.start()), n))
        # In the order of the output: a stage that shows after a later one belongs to another boot.
        for offset, n in sorted(found):
            if n > floor:
                floor = n
                self.stages += (StageReached(self._names[n], now, offset),)
                self.progress = now
                # What a firmware said was not its last word.
                if self.dying is not None and self.dying.kind in prompts.KINDS and self.stage != "firmware":
                    self.dying = None

    def _look_for_boot(self, seen: Cleaned, base: int, now: float, unquoted: int) -> None:
        """A kernel's or a loader's first words after this boot's kernel was seen."""
        if not self._reached("kernel"):
            return
        first = next((stage.offset for stage in self.stages if stage.name == "kernel"), self.boot_offset - 1)
        earliest = max(first + 1, base + seen.raw(max(0, unquoted)))
        if banner := self._tables.banner:
            if banner.stage.literal in seen.text and (match := self._first(banner.stage.pattern, seen, base, earliest)):
                self._banner = base + seen.raw(match.start())
            if self._banner is not None and self._first(banner.next_line, seen, base, self._banner):
                self._boots_again(self._banner, now)
        for byte, boot in self._boots:
            if byte not in seen.text or boot.literal not in seen.text:
                continue
            match = self._first(boot.pattern, seen, base, earliest)
            if match and not self._replayed(seen.text, match.start()):
                self._boots_again(base + seen.raw(match.start()), now)

    def _boots_again(self, offset: int, now: float) -> None:
        if self.dying is None or offset < self.dying.offset:
            self.dying = Dying(now, offset, reported=True, kind=SECOND_BOOT)
        elif offset > self.dying.offset and (self.dying.end is None or offset < self.dying.end):
            self.dying.end, self.dying.reported = offset, True
        else:
            return
        self.stages = tuple(stage for stage in self.stages if stage.offset < offset)

    def _replayed(self, text: bytes, at: int) -> bool:
        """Whether the kernel prints its log again from ``at`` on."""
        replayed = self._tables.replayed
        return replayed is not None and replayed.search(text, max(0, at - _OVERLAP), at) is not None

    def _only_banner(self) -> bool:
        """Whether nothing but the kernel's banner has come since it began."""
        start = len(self._window) - (self.offset - (self._banner or 0))
        banner = self._tables.banner
        return banner is not None and start >= 0 and banner.alone.fullmatch(self._cleaner.text(self._window[start:])) is not None

    def _look_for_death(self, seen: Cleaned, base: int, now: float, unquoted: int) -> None:
        window = seen.text
        earliest = self.dying.offset if self.dying else max(self.boot_offset, self._judged, base + seen.raw(max(0, unquoted)))
        self._unended = None
        for byte, marker in self._booted_markers if self._reached(self._names[-1]) else self._markers:
            if byte not in window or marker.literal not in window:
                continue
            match = self._first(marker.pattern, seen, base, earliest)
            if not match:
                continue
            offset = base + seen.raw(match.start())
            # A line that is not ended yet may still go on to be something else, unless nothing more comes.
            if not marker.prompt and b"\n" not in window[match.end() - 1 :]:
                self._unended = min(offset, self._unended or offset)
                continue
            if self.dying is None or offset < self.dying.offset:
                self.dying = Dying(now, offset, unfinished=marker.kind in _UNFINISHED)
        if self.dying is not None and not self.dying.reported:
            self._follow_report(self.dying, seen, base)

    def _follow_report(self, dying: Dying, seen: Cleaned, base: int) -> None:
        """How far the report has come, and whether a debugger is at work."""
        begin = seen.place(max(0, dying.offset - base))
        dying.reported = deaths.report_ended(seen.text[begin:])
        if self._first(_LAST_WORDS, seen, base, dying.offset):
            dying.unfinished = False
        for match in _DEBUGGING.finditer(seen.text, begin):
            if match["ask"]:
                dying.debugger = 0.0
            elif match["enter"]:
                dying.debugger = _DEBUGGER
            elif _LEAVES.match(match["command"]):
                dying.debugger, dying.unfinished = 0.0, False
            else:
                dying.debugger = _DUMP if _DUMPS.match(match["command"]) else _SCRIPT

    def _look_for_prompt(self, seen: Cleaned, base: int) -> None:
        """Whether the output ends with a prompt, or has the last words of a firmware."""
        self._waiting = None
        text = seen.text
        foot = max(text.rfind(b"\n"), text.rfind(b"\r")) + 1
        if foot or not self._torn:
            for marker in self._asking:
                match = marker.pattern.match(text, foot)
                if match and not text[match.end() :].strip(b" ") and base + seen.raw(foot) >= self.boot_offset:
                    self._waiting = Waiting(marker.kind, base + seen.raw(foot), prompts.AT_ONCE)
                    return
        if self._reached(self._names[-1]):
            return
        ended = self.stuck(text)
        if ended is None:
            return
        offset = base + seen.raw(ended.at)
        if ended.waits:
            self._waiting = Waiting(ended.kind, offset, ended.patience)
        elif self.dying is None:
            self.dying = Dying(self.last_byte, offset, kind=ended.kind, patience=ended.patience)
