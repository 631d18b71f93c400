# SPDX-License-Identifier: BSD-2-Clause
"""The action trace: every command, xl command, wait and restore of a case, with its times, status and caller.

Code that acts on a host or a guest wraps the action in :func:`step`. :func:`record` starts a file for a case; without one a step is
only logged. Each event writes one line to the file at its begin and one at its end, both at once. So a killed harness loses
nothing, and the open events show what it did last. docs/schema/trace.json describes the lines.
"""

from __future__ import annotations

import json
import logging
import os
import re
import shlex
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType

from harness.safetext import REMOVED, SECRET_NAME, plain, redact

log = logging.getLogger("fxh.trace")

FILE = "trace.jsonl"
CASE, EVIDENCE, PAUSE, TYPED = "case", "evidence", "pause", "typed"
"""Kinds of events: one attempt to run a case, what is looked at after a failure, a pause for a person, and a line that was typed."""
OUTPUT = 5
"""Log level of the output of commands (``fxh -vv``), below DEBUG."""

# Characters. Scripts for dom0 travel as arguments; a longer argument is cut.
_ARGUMENT, _BEGIN, _WHAT, _LAST = 160, 60, 400, 400
# Bytes of an output that `-vv` shows.
_SHOWN = 2000
# Numbers from here on are no times and sizes (NaN and infinity compare as such, too).
_LARGEST = 1e15

# --smtp-password secret    --token=secret
_SECRET_OPTION = re.compile(rf"(?is)(?P<name>-{SECRET_NAME})(?:=(?P<value>.*))?\Z")


@dataclass
class Step:
    """An action in progress. Its owner sets what the end of the event reports."""

    status: str = ""
    """How it ended, for example ``exit 1``; empty means success. An exception fills it in."""
    size: int = 0
    """Bytes read."""
    last: str = ""
    """The last thing a wait saw."""
    output: bytes = b""
    """For ``fxh -vv`` only; never written to the file."""


@dataclass(frozen=True)
class Event:
    """One event. ``at`` is seconds since the epoch, ``clock`` seconds of the monotonic clock, as in the index of a console log.

    ``seconds`` is negative if the event never ended.
    """

    number: int
    parent: int
    at: float
    kind: str
    what: str
    where: str = ""
    caller: str = ""
    clock: float = 0.0
    seconds: float = -1.0
    status: str = ""
    size: int = 0
    last: str = ""

    @property
    def ended(self) -> bool:
        return self.seconds >= 0


@dataclass
class _Recorder:
    path: Path
    count: int = 0
    open: list[int] = field(default_factory=lambda: [0])
    descriptor: int = -1
    closed: bool = False
    pending: dict[str, object] | None = None
    """The begin of a case that has no event yet: one that is skipped leaves no file."""

    def write(self, value: dict[str, object]) -> None:
        """Append a line. If that fails, the action continues and later events are lost: a full disk must not prevent `xl destroy`."""
        if self.closed:
            return
        try:
            if self.descriptor < 0:
                self.descriptor = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o644)
                self._end_line()
            os.write(self.descriptor, json.dumps(value, separators=(",", ":")).encode() + b"\n")
        except OSError as exc:
            self.closed = True
            log.warning("%s: %s; no further events are recorded", self.path, exc.strerror)

    def begin(self, value: dict[str, object]) -> None:
        if value["kind"] == CASE:
            self.pending = value
            return
        if self.pending is not None:
            self.write(self.pending)
            self.pending = None
        self.write(value)

    def end(self, value: dict[str, object]) -> None:
        if self.pending is None or self.pending["event"] != value["event"]:
            self.write(value)

    def _end_line(self) -> None:
        """A killed harness may have left half a line."""
        size = os.fstat(self.descriptor).st_size
        if size and os.pread(self.descriptor, 1, size - 1) != b"\n":
            os.write(self.descriptor, b"\n")

    def close(self) -> None:
        """A step that is still open, in a suspended generator, writes nothing after this."""
        self.closed = True
        if self.descriptor >= 0:
            os.close(self.descriptor)
            self.descriptor = -1


_recorder: ContextVar[_Recorder | None] = ContextVar("fxh.trace", default=None)


@contextmanager
def record(path: Path) -> Iterator[None]:
    """Append the events of this thread to ``path`` until the block ends. If the file cannot be written, only a warning is logged."""
    # A case that runs again appends: its numbers continue after those in the file.
    before = max((event.number for event in read(path)), default=0) if path.is_file() else 0
    recorder = _Recorder(path, before)
    token = _recorder.set(recorder)
    try:
        yield
    finally:
        _recorder.reset(token)
        recorder.close()


@contextmanager
def step(kind: str, what: str | Sequence[str], where: str = "") -> Iterator[Step]:
    """Record an action: ``kind`` is one word (xl, command, guest, wait, restore, boot, evidence), ``where`` the host or guest.

    ``what`` is a sentence or a command line. Secrets are blanked out.
    """
    recorder, verbose = _recorder.get(), log.isEnabledFor(logging.DEBUG)
    taken = Step()
    if recorder is None and not verbose:
        yield taken
        return
    text = redact(what[: 4 * _WHAT])[:_WHAT] if isinstance(what, str) else command(what)[:_WHAT]
    number, begun = 0, time.monotonic()
    if recorder is not None:
        recorder.count += 1
        number = recorder.count
        begin: dict[str, object] = {
            "event": number,
            "in": recorder.open[-1],
            "at": round(time.time(), 4),
            "clock": round(begun, 4),
            "kind": kind,
            "what": text,
        }
        begin |= {"where": where} if where else {}
        begin |= {"caller": found} if (found := caller()) else {}
        recorder.begin(begin)
        recorder.open.append(number)
    try:
        yield taken
    except BaseException as exc:
        taken.status = taken.status or f"{type(exc).__name__}: {(str(exc)[:_LAST].splitlines() or [''])[0]}"
        raise
    finally:
        seconds = time.monotonic() - begun
        status, last = redact(taken.status[:_LAST]), redact(taken.last[:_LAST])
        if recorder is not None:
            recorder.open.remove(number)
            end: dict[str, object] = {"event": number, "seconds": round(seconds, 4)}
            end |= {"status": status} if status else {}
            end |= {"bytes": taken.size} if taken.size else {}
            end |= {"last": last} if last else {}
            recorder.end(end)
        if verbose:
            shown = f"{where} {text}: {seconds:.2f} s {status or 'ok'}{f'; last: {last}' if last else ''}"
            log.debug("%s", plain(shown))
            if taken.output and log.isEnabledFor(OUTPUT):
                log.log(OUTPUT, "%s", plain(redact(taken.output[-_SHOWN:].decode("utf-8", "replace"))))


def caller() -> str:
    """The innermost frame inside a case, as ``suites/boot/test_boot.py:41``; empty outside a case."""
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        name = frame.f_code.co_filename
        at = name.rfind("/suites/")
        if at >= 0:
            return f"{name[at + 1 :]}:{frame.f_lineno}"
        frame = frame.f_back
    return ""


def command(argv: Sequence[str]) -> str:
    """A readable command line without secrets. Of a long argument, such as a script, only the beginning of its first line is left."""
    words = [redact(word) if len(word) <= _ARGUMENT else f"{redact(_beginning(word))}..." for word in argv]
    for number, word in enumerate(argv):
        if option := _SECRET_OPTION.match(word):
            if option["value"] is not None:
                words[number] = f"{option['name']}={REMOVED}"
            elif number + 1 < len(words):
                words[number + 1] = REMOVED
    return shlex.join(words)


def _beginning(text: str) -> str:
    return (text[: 4 * _BEGIN].strip().splitlines() or [""])[0][:_BEGIN]


def read(path: Path) -> tuple[Event, ...]:
    """The events of a file in order of their begin. Invalid lines are skipped, such as one that was cut short. Raises OSError."""
    begun: dict[int, dict[str, object]] = {}
    ends: dict[int, dict[str, object]] = {}
    for line in path.read_bytes().splitlines():
        try:
            value = json.loads(line)
            number = int(value["event"])
        except (ValueError, KeyError, TypeError, OverflowError, RecursionError):
            continue
        (begun if "kind" in value else ends)[number] = value
    return tuple(_event(begun[number], ends.get(number, {})) for number in sorted(begun))


def _event(begin: dict[str, object], end: dict[str, object]) -> Event:
    def number(values: dict[str, object], key: str, default: float) -> float:
        value = values.get(key, default)
        return float(value) if isinstance(value, int | float) and abs(value) < _LARGEST else default

    def words(values: dict[str, object], key: str) -> str:
        return str(values.get(key, "")).encode("utf-8", "replace").decode()

    return Event(
        number=int(number(begin, "event", 0)),
        parent=int(number(begin, "in", 0)),
        at=number(begin, "at", 0.0),
        kind=words(begin, "kind"),
        what=words(begin, "what"),
        where=words(begin, "where"),
        caller=words(begin, "caller"),
        clock=number(begin, "clock", 0.0),
        seconds=number(end, "seconds", -1.0),
        status=words(end, "status"),
        size=int(number(end, "bytes", 0)),
        last=words(end, "last"),
    )
