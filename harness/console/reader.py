"""Reads a console for as long as it lives: stamps, logs, watches. One thread a console, always on."""

from __future__ import annotations

import contextlib
import logging
import re
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import IO

from harness.console import deaths
from harness.console.deaths import Death, Symbols
from harness.console.stages import FIRST_LINE, Stage, StageReached
from harness.console.text import decode, excerpt, report_excerpt
from harness.console.watcher import Dying, Overrun, Watcher
from harness.deadline import Deadline
from harness.errors import GuestDied, TransportError
from harness.transport import Stream

log = logging.getLogger("fxh.console")

_CHUNK = 1 << 16
# Prompts at which something is asked, what, and how long an answer may take.
_QUESTIONS = {"ddb": (b"db> ", ("bt", "show pcpu", "ps", "show lockchain all")), "mountroot": (b"mountroot> ", ("?",))}
_ANSWER = 10.0
# With no echo by then it is asked again: a serial port is flushed (uart_grab) after its prompt was printed.
_ECHO = 2.5

Listener = Callable[[StageReached | Death], None]


class ConsoleReader:
    """``stream`` is read to its end; every byte goes to ``log_path``, every chunk's time to ``log_path``.idx.

    The index has a line ``offset time`` (bytes, monotonic seconds) for each chunk. A dead guest ends every wait at once
    with GuestDied, whoever waits. ``scale`` stretches the stages' budgets. ``ask``: hold the conversation at a dead
    guest's prompt. ``symbols`` reads the guest's kernel file: asked only for a backtrace that lacks names.
    """

    def __init__(
        self,
        stream: Stream,
        log_path: Path,
        *,
        stages: Sequence[Stage],
        name: str = "guest",
        scale: float = 1.0,
        first_line: float = FIRST_LINE,
        ask: bool = True,
        listener: Listener | None = None,
        symbols: Callable[[], Symbols | None] | None = None,
    ) -> None:
        self.name, self.log_path = name, log_path
        self._stream, self._listener, self._ask_at_prompts = stream, listener, ask
        self._symbols, self._patience = symbols, max(1.0, scale)
        self._changed = threading.Condition()
        self._out: IO[bytes] = log_path.open("ab", buffering=0)
        self._index: IO[str] = Path(f"{log_path}.idx").open("a", buffering=1)  # noqa: SIM115 - lives as long as we do
        self._watcher = Watcher(stages, first_line=first_line, scale=scale)
        self.closed = False
        self.death: Death | None = None
        self._expected_end = False
        self._broken: TransportError | None = None
        self._expecting = 0
        self._begin_boot(self._out.tell())
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

    def _begin_boot(self, offset: int) -> None:
        self.started = time.monotonic()
        self.death = None
        self._watcher.begin_boot(self.started, offset)

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
        return TransportError(f"the console of {self.name} {how}", mend=broken.mend if broken else "")

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
        """The console is about to end rightly (the domain is destroyed or goes down): that is no death."""
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

    def _judge(self) -> None:
        if self.death is not None:
            return
        now = time.monotonic()
        match self._watcher.due(now):
            case Dying() as dying:
                self._autopsy(dying, final=self._watcher.overrun(now) is not None)
            case Overrun(stage, seconds):
                message = f"no progress after stage {stage} for {seconds:.0f} s"
                self._set_death(Death("hang", message, stage, excerpt=excerpt(self.tail())))

    def _autopsy(self, dying: Dying, *, final: bool) -> None:
        """Judge what was printed. ``final``: nothing more will come, so a report that may be one is one."""
        # What led up to it belongs to the excerpt and names the root device that failed.
        lead = max(self.boot_offset, dying.offset - 2048)
        data = self.since(lead)
        line = data.rfind(b"\n", 0, dying.offset - lead) + 1
        death = deaths.classify(data[line:], self.stage)
        if death is None:
            self._watcher.retract()
            return
        if not final and time.monotonic() - self._watcher.last_byte < death.patience * self._patience:
            return
        cut = line + death.begin
        if death.kind in ("mountroot", "single-user", "firmware"):
            death = deaths.classify(data, self.stage) or death
        answers: tuple[tuple[str, str], ...] = ()
        if dying.prompt in _QUESTIONS and self._ask_at_prompts:
            answers = self._interview(*_QUESTIONS[dying.prompt])
            if dying.prompt == "ddb":
                death = deaths.retraced(death, dict(answers).get("bt", ""))
        if self._symbols is not None and deaths.nameless(death):
            death = deaths.with_names(death, self._symbols())
        # What a prompt is about was printed before it.
        before = 30 if death.kind == dying.prompt else 6
        text = report_excerpt(decode(data[:cut]), decode(data[cut:]), before)
        self._set_death(replace(death, excerpt=text, answers=answers))

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
        try:
            while not deadline.expired and not self.since(begun).endswith(prompt):
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
                if b"--More--" in chunk:
                    self._stream.write(b" ")
        except TransportError as exc:
            return question, f"(the console ended: {exc})"
        return question, decode(self.since(begun))

    def _set_death(self, death: Death) -> None:
        with self._changed:
            self.death = replace(death, at=time.monotonic(), seen=self._watcher.last_byte)
            self._changed.notify_all()
        self._tell(self.death)

    def _end(self) -> None:
        dying = self._watcher.last_words(time.monotonic())
        if dying is not None and self.death is None:
            # A guest that goes down rightly has not died of words without a kernel's report behind them.
            self._autopsy(dying, final=not self._expected_end)
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
