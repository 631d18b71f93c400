# SPDX-License-Identifier: BSD-2-Clause
"""The prompt of a paused case: the consoles of its guests, a shell in dom0, and gdb, until the person types Ctrl-D."""

from __future__ import annotations

import os
import shlex
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from contextlib import ExitStack, suppress
from pathlib import Path

from harness import trace
from harness.console.terminal import ReaderStream, TypedStream, attach
from harness.errors import HarnessError
from harness.guests.guest import Guest
from harness.hosts.debugger import Debugger
from harness.hosts.host import XenHost
from harness.plugin.case_context import CaseContext
from harness.safetext import plain

_PROMPT = "pause> "
# An interactive shell with the size of the user's terminal: $1 rows, $2 columns, $3 prompt.
_SHELL = 'stty rows "$1" cols "$2"; cd; PS1=$3; export PS1; if command -v bash >/dev/null; then exec bash --norc -i; fi; exec sh -i'


def serve(where: str, context: CaseContext | None) -> None:
    """Print the banner, and run the person's commands until Ctrl-D. ``where`` describes the place of the pause.

    Time budgets of boot stages and the heartbeat of a lab do not count meanwhile. A lease is
    renewed by its own thread. Raises KeyboardInterrupt for Ctrl-C.
    """
    guests = [guest for guest in context.guests if guest.domid >= 0] if context is not None else []
    host = context.host if context is not None else None
    with ExitStack() as stack:
        for guest in guests:
            stack.enter_context(guest.console.budgets_off())
        debuggers: tuple[Debugger, ...] = ()
        if host is not None:
            debuggers = stack.enter_context(host.debuggers(guests[-1].domid if guests else None))
        _Prompt(where, guests, host, debuggers).serve()


class _Prompt:
    def __init__(self, where: str, guests: list[Guest], host: XenHost | None, debuggers: tuple[Debugger, ...]) -> None:
        self._where, self._guests, self._host, self._debuggers = where, guests, host, debuggers
        self._symbols = _symbols(guests[-1]) if guests else None

    def serve(self) -> None:
        print(f"\n{self.banner()}", flush=True)
        while True:
            try:
                words = shlex.split(input(_PROMPT))
            except EOFError:
                print()
                if self._may_continue():
                    return
                continue
            except ValueError as exc:  # an open quote
                print(exc)
                continue
            if not words:
                continue
            try:
                self._run(*words)
            except HarnessError as exc:
                print(plain(f"{exc.message}\n  hint: {exc.hint}" if exc.hint else exc.message))

    def banner(self) -> str:
        """The commands of the prompt, and those for another terminal."""
        rows = [("console", plain(f"console {number}: {_describe(guest)}")) for number, guest in enumerate(self._guests, 1)]
        if not rows:
            rows = [("console", "the case has not created a guest yet")]
        if self._host is not None:
            dom0 = self._host.describe_access().dom0
            rows.append(("dom0", "a shell in dom0" + (f"; in another terminal: {dom0}" if dom0 else "")))
        else:
            rows.append(("dom0", "the case has no host yet"))
        rows += [("gdb", line) for line in self._debugger_lines()]
        rows += [("help", "print this again"), ("Ctrl-D", "continue the case"), ("Ctrl-C", "end the run")]
        shown, last = [], ""
        for name, text in rows:
            shown.append(f"  {name if name != last else '':<9} {text}")
            last = name
        note = "This case gets no verdict and stays out of the history, because a person had it."
        return "\n".join([plain(f"--- paused {self._where}\n")[:-1], *shown, note])

    def _debugger_lines(self) -> list[str]:
        lines = []
        for one in self._debuggers:
            lines.append(f"gdb {one.name}: {one.covers}")
            lines += [f"  first, in another terminal: {one.start}"] if one.start else []
            lines.append(f"  or: {one.line(self._symbols)}")
        if lines and self._guests and self._symbols is None:
            lines.append("no symbols: this machine has no debugging information of the guest's kernel")
        return lines or ["no stub could be opened" if self._guests else "there is nothing to debug yet"]

    def _may_continue(self) -> bool:
        """Whether no debugger is attached, which would stop the case."""
        with suppress(HarnessError):
            if any(one.attached() for one in self._debuggers):
                print("a debugger is still attached: detach it, then type Ctrl-D again")
                return False
        return True

    def _run(self, command: str, *words: str) -> None:
        if command == "console":
            self._console(words)
        elif command == "dom0":
            self._dom0()
        elif command == "gdb":
            self._gdb(words)
        elif command == "help":
            print(self.banner())
        else:
            print(f"unknown command {plain(command)}: console, dom0, gdb, help; Ctrl-D continues the case")

    # -- what is handed over ------------------------------------------------------------------------------------------

    def _console(self, words: tuple[str, ...]) -> None:
        """``console [NUMBER]``: the console of a guest, by default the last one."""
        number = words[0] if words else str(len(self._guests))
        if not (number.isascii() and number.isdecimal()) or not 1 <= int(number) <= len(self._guests):
            print(f"no console {plain(number)}: the case has {len(self._guests)} guests")
            return
        guest = self._guests[int(number) - 1]
        if guest.console.closed:
            print(plain(_describe(guest)))
            return
        with ExitStack() as lent:
            if guest.console.death is None:
                problem = lent.enter_context(guest.lent())
                if problem:
                    print(plain(f"the shell of the case does not answer, so it may not echo: {problem}"))
            position = guest.console.offset
            guest.console.write(b"\r")  # for a prompt
            attach(TypedStream(ReaderStream(guest.console, position), _recorder(guest.name)))
            print("\ndetached from the console", flush=True)

    def _dom0(self) -> None:
        if self._host is None:
            print("the case has no host yet")
            return
        size = os.get_terminal_size(sys.stdout.fileno())  # not the variables COLUMNS and LINES, which may be old
        argv = ["sh", "-c", _SHELL, "sh", str(size.lines), str(size.columns), f"dom0 {self._host.facts.name}# "]
        attach(TypedStream(self._host.transport.open(argv, pty=True), _recorder("dom0")))
        print("\nleft dom0", flush=True)

    def _gdb(self, words: tuple[str, ...]) -> None:
        """``gdb [NAME]``: gdb on a stub, by default the first one."""
        found = [one for one in self._debuggers if not words or one.name == words[0]]
        if not found:
            print(f"no stub {plain(words[0])}" if words else "there is no stub")
        elif shutil.which("gdb") is None:
            print("no gdb on this machine: apt-get install gdb")
        else:
            with trace.step(trace.TYPED, found[0].command(self._symbols)):
                _run_in_terminal(found[0].command(self._symbols))


def _describe(guest: Guest) -> str:
    """The state of a guest in one line."""
    reader = guest.console
    name = f"{guest.name} (domain {guest.domid})"
    if reader.closed:
        why = reader.death.summary if reader.death is not None else "its console has ended"
        return f"{name} is gone: {why}; its console is in {reader.log_path}"
    if reader.death is not None:
        return f"{name} is dead: {reader.death.summary}; it answers only if it waits in its debugger; Ctrl-] comes back"
    return f"{name} runs; Ctrl-] comes back; leave its shell at the prompt"


def _symbols(guest: Guest) -> Path | None:
    """A file with the symbols of the guest's kernel, or None."""
    if guest.symbols is None:
        return None
    try:
        return guest.symbols.debug
    except (HarnessError, OSError):
        return None


def _recorder(where: str) -> Callable[[str], None]:
    """Writes each typed line to the action trace of the case."""

    def record(line: str) -> None:
        with trace.step(trace.TYPED, plain(line), where):
            pass

    return record


def _run_in_terminal(argv: tuple[str, ...]) -> None:
    """Run a program in the user's terminal. Ctrl-C reaches the program alone."""
    sys.stdout.flush()
    # A handler, not SIG_IGN: the program would inherit that.
    before = signal.signal(signal.SIGINT, lambda number, frame: None)
    try:
        subprocess.run(argv, check=False, env={**os.environ, "TERM": os.environ.get("TERM", "dumb")})
    finally:
        signal.signal(signal.SIGINT, before)
