# SPDX-License-Identifier: BSD-2-Clause
"""Reads a console for as long as it lives: stamps, logs, watches. One thread a console, always on."""

from __future__ import annotations

import contextlib
import logging
import math
import re
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import IO

from harness.console import deaths, prompts
from harness.console.deaths import Death, Symbols
from harness.console.stages import FIRST_LINE, StageReached
from harness.console.tables import ConsoleTables
from harness.console.text import decode, excerpt, report_excerpt
from harness.console.watcher import SECOND_BOOT, Dying, Overrun, Watcher, script_answers
from harness.deadline import Deadline
from harness.errors import GuestDied, TransportError
from harness.transport import Stream

log = logging.getLogger("fxh.console")

_CHUNK = 1 << 16
# How long an answer at a prompt may take, in seconds.
_ANSWER = 10.0
# Deaths whose reason was printed before their first words; and how many bytes of that are looked at.
_LED_UP, _LEAD = ("mountroot", "single-user", "crash"), 8192
# Of a report that is longer than twice this (bytes), as with a guest that prints without end, the middle is left out.
_REPORT = 2 << 20
# A debugger's output stops after each page.
_PAGE = b"--More--"
# With no echo by then it is asked again: a serial port is flushed (uart_grab) after its prompt was printed.
_ECHO = 2.5

Listener = Callable[[StageReached | Death], None]


class ConsoleReader:
    """``tables``: what the guest's OS prints. ``stream`` is read to its end; every byte goes to ``log_path``, every chunk's time to ``log_path``.idx.

    The index has a line ``offset time`` (bytes, monotonic seconds) for each chunk. A dead guest ends every wait at once
    with GuestDied, whoever waits. ``scale`` stretches the stages' budgets. ``ask``: hold the conversation at a dead
    guest's prompt. ``running``: the guest has booted before, so any boot on this console is a second one. ``symbols`` reads the
    guest's kernel file: asked only for a backtrace that lacks names.
    """

    def __init__(
        self,
        stream: Stream,
        log_path: Path,
        *,
        tables: ConsoleTables,
        name: str = "guest",
        scale: float = 1.0,
        first_line: float = FIRST_LINE,
        ask: bool = True,
        running: bool = False,
        listener: Listener | None = None,
        symbols: Callable[[], Symbols | None] | None = None,
    ) -> None:
        self.name, self.log_path = name, log_path
        self._stream, self._listener, self._ask_at_prompts = stream, listener, ask
        self._symbols, self._patience = symbols, max(1.0, scale)
        self._changed = threading.Condition()
        self._out: IO[bytes] = log_path.open("ab", buffering=0)
        self._index: IO[str] = Path(f"{log_path}.idx").open("a", buffering=1)  # noqa: SIM115 - lives as long as we do
        self._tables = tables
        self._watcher = Watcher(tables, first_line=first_line, scale=scale, running=running)
        self.closed = False
        self.death: Death | None = None
        self._expected_end = False
        self._broken: TransportError | None = None
        self._expecting = 0
        self._paged = -1
        self._begin_boot(self._out.tell(), running=running)
        self._thread = self._new_thread()

    # -- life ---------------------------------------------------------------------------------------------------------

    def _new_thread(self) -> threading.Thread:
        return threading.Thread(target=self._read, name=f"console-{self.name}", daemon=True)

    def start(self) -> ConsoleReader:
        self._thread.start()
        return self

    def stop(self) -> None:
        """End the stream and the thread; the log stays."""
        self._expected_end = True
        self._stream.close()
        self.join(5)

    def close(self) -> None:
        """:meth:`stop`, and close the log."""
        self.stop()
        self._out.close()
        self._index.close()

    def join(self, seconds: float) -> None:
        """Wait for the stream's end."""
        if self._thread.is_alive() and self._thread is not threading.current_thread():
            self._thread.join(seconds)

    def replace_stream(self, stream: Stream, *, same_boot: bool = False) -> None:
        """Go on with another stream: same log, and a new boot (the domain was re-created) unless ``same_boot``."""
        self.stop()
        self._stream = stream
        with self._changed:
            self.closed = self._expected_end = False
            self._broken = None
            if not same_boot:
                self._begin_boot(self.offset)
        self._thread = self._new_thread()
        self._thread.start()

    def rearm(self) -> None:
        """A new boot begins on this console: stages and death are forgotten, the log goes on."""
        with self._changed:
            self._begin_boot(self.offset)

    def _begin_boot(self, offset: int, *, running: bool = False) -> None:
        self.started = time.monotonic()
        self.death = None
        self._watcher.begin_boot(self.started, offset, running=running)

    # -- what was seen ------------------------------------------------------------------------------------------------

    @property
    def offset(self) -> int:
        """Bytes read since the log began."""
        return self._watcher.offset

    @property
    def boot_offset(self) -> int:
        """Where in the log this boot began."""
        return self._watcher.boot_offset

    @property
    def stages(self) -> tuple[StageReached, ...]:
        return self._watcher.stages

    @property
    def stage(self) -> str:
        return self._watcher.stage

    def since(self, offset: int, size: int = -1) -> bytes:
        """The console's bytes from ``offset`` on."""
        with self.log_path.open("rb") as file:
            file.seek(offset)
            return file.read(size)

    def tail(self, size: int = 4096) -> str:
        return decode(self.since(max(0, self.offset - size)))

    # -- waiting ------------------------------------------------------------------------------------------------------

    def write(self, data: bytes) -> None:
        self._stream.write(data)

    def read(self, position: int, size: int, deadline: Deadline) -> bytes | None:
        """Up to ``size`` bytes from ``position`` on, as soon as there are any; b"" when ``deadline`` passed without.

        None is the console's end. Raises GuestDied when there is nothing more to read but a death.
        """
        with self._changed:
            while self.offset <= position:
                if death := self._mourned():
                    raise GuestDied(death)
                if self.closed or self.death is not None:
                    return None
                if deadline.expired:
                    return b""
                self._changed.wait(min(1.0, deadline.remaining))
        return self.since(position, size)

    def wait_for(self, pattern: bytes, deadline: Deadline, what: str, since: int | None = None) -> re.Match[bytes]:
        """Wait until ``pattern`` (MULTILINE) is found at or after ``since``. Raises GuestDied, DeadlineExpired."""
        compiled = re.compile(pattern, re.MULTILINE)
        data, position = b"", self.boot_offset if since is None else since
        while True:
            fresh = self.read(position, -1, deadline)
            if fresh is None:
                raise self._ended(f"ended while waiting for {what}")
            if not fresh:
                raise deadline.expire(f"{what} on the console of {self.name}", self._where())
            searched = max(0, len(data) - 4096)
            data += fresh
            position += len(fresh)
            match = compiled.search(data, searched)
            if match:
                return match

    def wait_stage(self, name: str, deadline: Deadline) -> StageReached:
        """Wait until a stage is reached. Raises GuestDied (a hang is a death, too), DeadlineExpired."""
        with self._changed:
            while True:
                for reached in self.stages:
                    if reached.name == name:
                        return reached
                if death := self._mourned():
                    raise GuestDied(death)
                if self.closed or self.death is not None:
                    raise self._ended(f"ended before stage {name!r}")
                if deadline.expired:
                    raise deadline.expire(f"{self.name} to reach stage {name!r}", self._where())
                self._changed.wait(min(1.0, deadline.remaining))

    def _ended(self, how: str) -> TransportError:
        broken = self._broken
        how = f"cannot be read: {broken.message}" if broken else how
        return TransportError(f"the console of {self.name} {how}", hint=broken.hint if broken else "")

    def _where(self) -> str:
        return f"it is at stage {self.stage or 'none'}, last line {excerpt(self.tail(), 1)!r}"

    def _mourned(self) -> Death | None:
        """The death that a wait has to end with."""
        return None if self._expecting else self.death

    @contextlib.contextmanager
    def expecting_death(self) -> Iterator[Callable[[Deadline], Death]]:
        """For a case that kills its guest on purpose: inside, a death is a value, not an error."""
        self._expecting += 1
        try:
            yield self._await_death
        finally:
            self._expecting -= 1

    def _await_death(self, deadline: Deadline) -> Death:
        with self._changed:
            while self.death is None:
                if deadline.expired:
                    raise deadline.expire(f"{self.name} to die", self._where())
                self._changed.wait(min(1.0, deadline.remaining))
            return self.death

    @contextlib.contextmanager
    def quoting(self, end: bytes) -> Iterator[None]:
        """While a command's output is read, up to the marker ``end``: words of a death may be quoted in it."""
        self._watcher.quote(end)
        try:
            yield
        finally:
            self._watcher.quote(None)

    def expect_end(self) -> None:
        """The console is about to end rightly (the domain is destroyed, goes down or reboots): that is no death.

        Nor is a second boot on it, then.
        """
        self._expected_end = True

    def watch(self, on: bool) -> None:
        """Whether the stages' budgets are watched; off while a domain is paused on purpose."""
        with self._changed:
            self._watcher.progress = time.monotonic()
            self._watcher.watching = on

    # -- the thread ---------------------------------------------------------------------------------------------------

    def _read(self) -> None:
        try:
            while True:
                try:
                    chunk = self._stream.read(_CHUNK, 0.1)
                except TimeoutError:
                    self._judge()
                    continue
                if not chunk:
                    break
                self._take(chunk)
                self._judge()
        except TransportError as exc:
            self._broken = exc
        except Exception:  # a bug here must not look like a silent guest
            log.exception("console reader of %s", self.name)
        self._end()

    def _take(self, chunk: bytes) -> None:
        now = time.monotonic()
        self._out.write(chunk)
        self._index.write(f"{self.offset} {now:.6f}\n")
        with self._changed:
            fresh = self._watcher.feed(chunk, now)
            self._changed.notify_all()
        for reached in fresh:
            self._tell(reached)

    def _judge(self, *, ended: bool = False) -> None:
        if self.death is not None:
            return
        now = time.monotonic()
        match self._watcher.deadline(now, ended=ended):
            case Dying(kind=kind, offset=offset) if kind == SECOND_BOOT and self._expected_end:
                self._boot_again(offset)
            case Dying() as dying:
                # A guest that goes down rightly has not died of words without a kernel's report behind them.
                gone = ended and not self._expected_end
                self._autopsy(dying, final=gone or self._watcher.overrun(now) is not None)
            case Overrun(stage, seconds) if not ended:
                message = f"no progress after stage {stage} for {seconds:.0f} s"
                self._set_death(Death("hang", message, stage, excerpt=excerpt(self.tail())))
            case _ if self._watcher.dying is not None:
                self._turn_page()

    def _boot_again(self, offset: int) -> None:
        """A reboot that a case asked for, on the same console: its stages count from there."""
        with self._changed:
            since = self.since(offset)
            self._begin_boot(offset)
            fresh = self._watcher.feed(since, self.started)
            self._changed.notify_all()
        for reached in fresh:
            self._tell(reached)

    def _report(self, begin: int, end: int) -> bytes:
        """The console from ``begin`` to ``end``, at most twice :data:`_REPORT` of it: what came first and what came last."""
        if end - begin <= 2 * _REPORT:
            return self.since(begin, end - begin)
        return self.since(begin, _REPORT) + b"\n" + self.since(end - _REPORT, _REPORT)

    def _autopsy(self, dying: Dying, *, final: bool) -> None:
        """Judge what was printed. ``final``: nothing more will come, so a report that may be one is one."""
        # What led up to it belongs to the excerpt and names the root device that failed.
        lead = self._line_start(max(self.boot_offset, dying.offset - _LEAD))
        data = self._report(lead, self.offset if dying.end is None else dying.end)
        cut = dying.offset - lead
        death = self._classify(dying, data, cut)
        if death is None:
            self._watcher.retract()
            return
        quiet = time.monotonic() - self._watcher.last_byte
        if not final and quiet < death.patience * self._patience and (dying.end is None or math.isinf(death.patience)):
            if dying.end is not None:
                self._watcher.retract()
            return
        cut = death.begin
        answers = script_answers(decode(self._watcher.clean(data[cut:])))
        if self._ask_at_prompts and (asked := self._tables.questions.get(dying.prompt)):
            told = {command for command, _ in answers}
            answers += self._interview(asked.prompt, tuple(command for command in asked.commands if command not in told))
        death = deaths.retraced(death, dict(answers).get("bt", ""), self._tables)
        if self._symbols is not None and deaths.nameless(death):
            death = deaths.with_names(death, self._symbols(), self._tables)
        # What a prompt is about was printed before it.
        before = 30 if death.kind == dying.prompt or dying.kind else 6
        text = report_excerpt(decode(data[:cut]), decode(data[cut:]), before)
        self._set_death(replace(death, excerpt=text, answers=answers))

    def _line_start(self, offset: int) -> int:
        """Where the line begins that the byte before ``offset`` is in, within reason."""
        begin = max(self.boot_offset, offset - 512)
        return begin + self.since(begin, offset - begin).rfind(b"\n") + 1 if offset > begin else offset

    def _classify(self, dying: Dying, data: bytes, cut: int) -> Death | None:
        """The death that ``data`` of the log tells of, whose first words are at ``cut``."""
        clean, stage = self._watcher.clean, self._watcher.stage_at(dying.offset)
        if dying.kind == SECOND_BOOT:
            return Death(SECOND_BOOT, prompts.second_boot(decode(clean(data[:cut]))), stage, begin=cut)
        if prompts.KINDS & {dying.kind, dying.prompt} and (ended := self._watcher.stuck(clean(data))):
            return Death(ended.kind, ended.message, stage, begin=cut)
        line = data.rfind(b"\n", 0, cut) + 1
        seen = self._watcher.seen(data[line:])
        death = deaths.classify(seen.text, self._tables, stage, self._watcher.stuck)
        if death is None:
            return None
        begin = line + seen.raw(death.begin)
        if death.kind in _LED_UP:
            death = deaths.classify(clean(data), self._tables, stage, self._watcher.stuck) or death
        return replace(death, begin=begin)

    def _interview(self, prompt: bytes, questions: tuple[str, ...]) -> tuple[tuple[str, str], ...]:
        """All questions with their answers, up to the first to which nothing at all is said."""
        answers: list[tuple[str, str]] = []
        for question in questions:
            answers.append(self._ask(question, prompt))
            if not answers[-1][1]:
                break
        return tuple(answers)

    def _ask(self, question: str, prompt: bytes) -> tuple[str, str]:
        """One question at a prompt, read on this thread, for it is the one that reads."""
        begun, deadline, echo = self.offset, Deadline(_ANSWER), Deadline(0)
        asked = re.compile(rb"(?:^|[\r\n])%s\Z" % re.escape(prompt))
        said = b""
        try:
            while not deadline.expired and not asked.search(said):
                if echo.expired and self.offset == begun:
                    self._stream.write(question.encode() + b"\r")
                    echo = Deadline(_ECHO)
                try:
                    chunk = self._stream.read(_CHUNK, 0.1)
                except TimeoutError:
                    continue
                if not chunk:
                    break
                self._take(chunk)
                said = self._watcher.clean(self.since(begun))
                self._turn_page()
        except TransportError as exc:
            return question, f"(the console ended: {exc})"
        return question, decode(said)

    def _turn_page(self) -> None:
        """Let a debugger go on that stands at the end of a page (sys/ddb/db_output.c, db_pager())."""
        begin = max(0, self.offset - 128)
        said = self.since(begin)
        at = begin + said.rfind(_PAGE)
        if at < begin or at == self._paged or not self._ask_at_prompts:
            return
        if not self._watcher.clean(said[at - begin + len(_PAGE) :]).strip():
            self._paged = at
            self._stream.write(b" ")

    def _set_death(self, death: Death) -> None:
        with self._changed:
            self.death = replace(death, at=time.monotonic(), seen=self._watcher.last_byte)
            self._changed.notify_all()
        self._tell(self.death)

    def _end(self) -> None:
        try:
            self._judge(ended=True)
        except Exception:
            # Whoever waits has to be told that the console ended.
            log.exception("console reader of %s", self.name)
        if self.death is None and self._broken is None and not self._expected_end:
            message = "the console ended: the domain is gone"
            self._set_death(Death("eof", message, self.stage, excerpt=excerpt(self.tail())))
        # After the death: who waits is told of that, and not of a console that ended.
        with self._changed:
            self.closed = True
            self._changed.notify_all()

    def _tell(self, event: StageReached | Death) -> None:
        if self._listener is not None:
            self._listener(event)
