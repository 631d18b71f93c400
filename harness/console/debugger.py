# SPDX-License-Identifier: BSD-2-Clause
"""Runs commands at the prompt of a dead guest: FreeBSD's kernel debugger (DDB), or mountroot."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection
from typing import Protocol

from harness.console.boot_tracker import BootTracker
from harness.console.tables import ConsoleTables
from harness.console.text import decode
from harness.deadline import Deadline
from harness.errors import TransportError

# Seconds for the output of one command.
_ANSWER = 10.0
# Bytes of one answer.
_LONGEST = 1 << 20
# DDB stops after each page of output.
_PAGE = b"--More--"
# If there is no echo after this many seconds, type the command again: a serial port is flushed (uart_grab) after its prompt.
_ECHO = 2.5


class Console(Protocol):
    """The parts of a console reader that the reader's own thread uses."""

    @property
    def offset(self) -> int: ...

    @property
    def boot_offset(self) -> int: ...

    def since(self, offset: int, size: int = -1) -> bytes: ...

    def write(self, data: bytes) -> None: ...


def script_answers(report: str) -> tuple[tuple[str, str], ...]:
    """The commands of a DDB script in ``report`` with their output: (command, output)."""
    # db:0:kdb.enter.panic>  bt
    parts = re.split(r"^db:\d+:[\w.-]+> *(.*)$", report, flags=re.MULTILINE)
    # Output after the debugger's own prompt does not belong to the script.
    return tuple(
        (command.strip(), re.split(r"^db> ", output, flags=re.MULTILINE)[0].strip("\n"))
        for command, output in zip(parts[1::2], parts[2::2], strict=True)
    )


class Debugger:
    """Queries the prompt of a dead guest. Use it on the reader's thread only.

    ``receive`` reads and logs the console's next chunk; it returns None if there is no output yet, and b"" at the end.
    """

    def __init__(self, console: Console, tracker: BootTracker, receive: Callable[[], bytes | None], tables: ConsoleTables) -> None:
        self._console, self._tracker, self._receive, self._tables = console, tracker, receive, tables
        self._paged_at = -1

    def query(self, kind: str, skip: Collection[str]) -> tuple[tuple[str, str], ...]:
        """Run the commands for a prompt of ``kind``, except those in ``skip``. Stops after the first without any output.

        Returns (command, output) for each.
        """
        answers: list[tuple[str, str]] = []
        question = self._tables.questions.get(kind)
        if question is None:
            return ()
        for command in question.commands:
            if command in skip:
                continue
            answers.append((command, self._run(command, question.prompt)))
            if not answers[-1][1]:
                break
        return tuple(answers)

    def _run(self, command: str, prompt: bytes) -> str:
        begin, deadline, echo = self._console.offset, Deadline(_ANSWER), Deadline(0)
        prompted = re.compile(rb"(?:^|[\r\n])%s\Z" % re.escape(prompt))
        output = b""
        try:
            while not deadline.expired and len(output) < _LONGEST and not prompted.search(output):
                if echo.expired and self._console.offset == begin:
                    self._console.write(command.encode() + b"\r")
                    echo = Deadline(_ECHO)
                chunk = self._receive()
                if chunk is None:
                    continue
                if not chunk:
                    break
                output = self._tracker.clean(self._console.since(begin, _LONGEST))
                self.turn_page()
        except TransportError as exc:
            return f"(the console ended: {exc})"
        return decode(output)

    def turn_page(self) -> None:
        """Press space if DDB waits at the end of a page (sys/ddb/db_output.c, db_pager())."""
        begin = max(0, self._console.offset - 128)
        output = self._console.since(begin)
        page = begin + output.rfind(_PAGE)
        if page < begin or page == self._paged_at:
            return
        if not self._tracker.clean(output[page - begin + len(_PAGE) :]).strip():
            self._paged_at = page
            self._console.write(b" ")
