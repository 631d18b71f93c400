# SPDX-License-Identifier: BSD-2-Clause
"""A shell on a guest's console. Output and status of its commands are exact even if the kernel prints in between."""

from __future__ import annotations

import contextlib
import hashlib
import re
import secrets
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pexpect
from pexpect.spawnbase import SpawnBase

from harness import trace
from harness.console.clean import Cleaner
from harness.console.reader import ConsoleReader
from harness.console.text import excerpt
from harness.deadline import Deadline
from harness.errors import DeadlineExpired, GuestCommandFailed, InfrastructureError, LoggedOut, UsageError
from harness.safetext import plain

PROMPT = "fxh# "
# Bytes that a console buffers until the guest reads them. FreeBSD's tty has no longer line (MAX_INPUT; sys/kern/tty_inq.c), nor has
# busybox.
TTY = 900
# For a serial port, FreeBSD buffers 384 bytes between an interrupt and its tty (sys/dev/uart/uart_core.c, sc_rxbufsz). It drops the
# rest if they arrive faster than on a real line, as from an emulated UART.
SERIAL_PORT = 360
# Bytes that :meth:`Session.run` types in addition to its command.
_AROUND = 100
# Deadlines in seconds.
_LOGIN = 60.0
_COMMAND = 60.0
_LENT = 20.0
# Functions of the session's shell. ``fxh_digest`` prints the digest of its input with md5 of FreeBSD or md5sum of busybox.
# ``fxh_emit NONCE LONG`` prints the status s and the output o of a command: twice, or once with its digest if it has LONG characters
# or more. The digest needs processes, which in an emulated guest cost more than most commands. The quotes split the markers, so
# that an echo of these lines does not match them.
_FUNCTIONS = (
    "fxh_digest() { if command -v md5 >/dev/null; then md5; else md5sum; fi; }; "
    'fxh_emit() { d=; [ ${#o} -lt $2 ] || d=$(printf %s "$o" | fxh_digest); echo fxh-"be"gin-$1 $s $d; '
    r'printf "%s\n" "$o"; [ "$d" ] || { echo fxh-"ag"ain-$1; printf "%s\n" "$o"; }; echo fxh-"en"d-$1; }'
)
# Makes a tty discard the current line, which may contain other input.
_KILL_LINE = "\x15"
# The length from which an output is long (characters). A serial port of an emulated machine may write only seven bytes a second.
_LONG_TTY, _LONG_SERIAL_PORT = 400, 64
# Seconds of silence after which to type again: at a login, in a shell, and in a resumed shell. While the console writes, wait
# _WRITING times as long. It may still echo earlier input: the emulated UART of a guest with four vCPUs wrote seven bytes a second.
# Each further line delays it more.
_RETRY_LOGIN, _RETRY_SHELL, _RETRY_RESUMED = 3.0, 5.0, 2.0
_WRITING = 12
# Bytes of a console that one wait keeps in memory.
_MOST = 64 << 20
# Attempts to read an output with a correct checksum. The kernel of a busy machine may print many messages.
_TORN = 6
# A terminal's answer to "where is the cursor" (ESC [ 6 n). resizewin(1) in FreeBSD's login profile waits for it.
_CURSOR_QUESTION, _CURSOR_ANSWER = b"\x1b[6n", b"\x1b[50;200R"

# An incomplete escape sequence:  ESC   ESC [   ESC [ 6
_CUT = re.compile(rb"\x1b(?:\[[0-?]{0,16})?\Z")

# login:     control login:
_LOGIN_PROMPT = re.compile(r"(?:\S+ )?login:")
# root@fbsd:~ #     $     #     %      control#
_ANY_PROMPT = rb"(?:^|[\r\n])[^\r\n]{0,80}[#$%>] ?(?:\x1b\[[0-9;]*[mKn])*$"


@dataclass(frozen=True)
class Output:
    """The result of a command in the guest. ``text`` is stdout and stderr together, without the last line end."""

    command: str
    status: int
    text: str


class ReaderSpawn(SpawnBase):  # type: ignore[type-arg]
    """pexpect on the console of a reader. ``expect`` sees output from the offset ``since`` on, by default new output.

    Every wait raises GuestDied if the guest dies.
    """

    def __init__(self, reader: ConsoleReader, since: int | None = None) -> None:
        super().__init__(timeout=_COMMAND, maxread=1 << 16, searchwindowsize=1 << 14)
        self.reader = reader
        self._position = reader.offset if since is None else since
        self._taken = 0
        self.answers_cursor_queries = True
        """Whether to answer a query for the cursor's position, as a terminal does."""
        self.strips_escapes = False
        """Whether to remove escape sequences, as a terminal does. True for prompts, False for exact output."""
        self._rest = b""
        self.name = f"console of {reader.name}"

    def read_nonblocking(self, size: int = 1, timeout: float | None = -1) -> bytes:
        """Up to ``size`` bytes. ``timeout`` is in seconds. Raises pexpect's TIMEOUT and EOF, and GuestDied."""
        if timeout == -1:
            timeout = self.timeout
        data = self.reader.read(self._position, size, Deadline(1e9 if timeout is None else timeout))
        if data is None:
            self.flag_eof = True
            raise pexpect.EOF(f"the {self.name} ended")
        if not data:
            raise pexpect.TIMEOUT(f"no output from the {self.name}")
        self._position += len(data)
        self._taken += len(data)
        if self._taken > _MOST:
            raise InfrastructureError(
                f"the {self.name} wrote more than {_MOST >> 20} MiB during one wait",
                hint="write the output of the command to a file",
            )
        # A sequence may arrive in two pieces, so keep an incomplete one.
        output, self._rest = self._rest + data, b""
        if self.answers_cursor_queries and _CURSOR_QUESTION in output:
            self.send(_CURSOR_ANSWER)
        cut = _CUT.search(output)
        if cut and (self.strips_escapes or self.answers_cursor_queries):
            self._rest = cut[0]
            if self.strips_escapes:
                output = output[: cut.start()]
        return Cleaner().text(output) if self.strips_escapes else data

    def send(self, text: bytes) -> int:
        self.reader.write(text)
        return len(text)

    def sendline(self, text: bytes = b"") -> int:
        return self.send(text + b"\r")


class Session:
    """A root shell on a guest's console. Call :meth:`login` first, or :meth:`resume` if a session is still logged in."""

    def __init__(self, reader: ConsoleReader, buffer_size: int = TTY) -> None:
        """``buffer_size``: bytes that the console buffers without loss until the guest reads them."""
        self.reader, self.buffer_size = reader, buffer_size

    # -- login --------------------------------------------------------------------------------------------------------

    def login(self, user: str = "root", password: str = "", deadline: Deadline | None = None) -> Session:
        """Log in at the prompt ``login:`` and start the session's shell.

        Raises GuestDied, DeadlineExpired, and InfrastructureError if the login fails.
        """
        deadline = deadline or Deadline(_LOGIN)
        # Start at the last prompt: earlier output does not concern this login.
        since = max(self.reader.boot_offset, self.reader.offset - 512)
        spawn = ReaderSpawn(self.reader, since + max(0, self.reader.since(since, 512).rfind(b"login:")))
        spawn.strips_escapes = True
        refused = re.compile(rb"Login incorrect")
        asked = 0
        while True:
            # An earlier prompt counts. After a silence, type a line end: a kernel message may follow the prompt.
            match self._expect(spawn, [rb"login: ?$", rb"[Pp]assword:", refused, _ANY_PROMPT], deadline, "a login", _RETRY_LOGIN):
                case 0:
                    asked += 1
                    if asked > 4:
                        raise InfrastructureError(
                            f"{self.reader.name}: the login prompt reappeared after each of {asked - 1} logins as {user}"
                        )
                    spawn.sendline(user.encode())
                case 1:
                    spawn.sendline(password.encode())
                case 2:
                    raise InfrastructureError(
                        f"{self.reader.name}: login as {user} refused", hint="use an image whose root has no password"
                    )
                case 3:
                    break
                case None:
                    spawn.sendline()
        return self._take_over(spawn, deadline)

    def resume(self, deadline: Deadline | None = None) -> Session:
        """Continue with the shell that an earlier session left at its prompt, in a restored checkpoint.

        Raises GuestDied, LoggedOut, DeadlineExpired.
        """
        deadline = deadline or Deadline(_LOGIN)
        self._synchronise(ReaderSpawn(self.reader), "the shell's prompt", deadline, _RETRY_RESUMED)
        return self

    def _take_over(self, spawn: ReaderSpawn, deadline: Deadline) -> Session:
        """Replace the login shell (csh, sh) by an sh without echo and line editing."""
        start = "exec env -i HOME=/root TERM=dumb PATH=$PATH PS1=fxh'# ' /bin/sh"
        while True:
            spawn.sendline(start.encode())
            if self._expect(spawn, [re.escape(PROMPT).encode()], deadline, "the prompt of sh", _RETRY_SHELL) is not None:
                break
        spawn.strips_escapes = False
        # Do not answer cursor queries from here on: an answer would become part of the next command line.
        spawn.answers_cursor_queries = False
        # FreeBSD's sh edits lines with libedit, which echoes them itself. The sh of busybox does not have these options.
        # tab0: with FreeBSD's getty for a serial line, the terminal driver expands tabs, and the checksum would be wrong.
        quiet = "set +o emacs 2>/dev/null; set +o vi 2>/dev/null; stty -echo tab0; PS2=; echo fxh'-'quiet"
        while True:
            spawn.sendline(quiet.encode())
            if (
                self._expect(
                    spawn, [rb"fxh-quiet\r*\n\r*" + re.escape(PROMPT).encode()], deadline, "a shell without echo", _RETRY_SHELL
                )
                is not None
            ):
                break
        # A late answer to a cursor query would be the beginning of the next command.
        self._synchronise(spawn, "the shell's prompt", deadline)
        self._synchronise(spawn, "the definition of shell functions", deadline, line=_FUNCTIONS)
        return self

    def _synchronise(
        self, spawn: ReaderSpawn, what: str, deadline: Deadline, patience: float = _RETRY_SHELL, *, line: str = ""
    ) -> None:
        """Type ``line`` once, and wait until the shell has read all input and answered the last query.

        Then the input buffers are empty, and further output belongs to the next command. Each query has its own answer;
        otherwise a late answer to a repeated query would appear in the middle of the next output.
        """
        while True:
            nonce = secrets.token_hex(2)
            self._type(spawn, line)
            # Split the marker, so that an echo does not match the answer.
            spawn.sendline(f"echo fxh'-'{nonce}".encode())
            answer = rf"fxh-{nonce}\r*\n\r*{re.escape(PROMPT)}".encode()
            if self._expect(spawn, [answer], deadline, what, patience) is not None:
                return
            self._check_logged_in(what)
            line = ""

    def _check_logged_in(self, what: str) -> None:
        """Raise LoggedOut if the console shows a login prompt: the shell was killed, for example by a lack of memory."""
        if _LOGIN_PROMPT.fullmatch(_last_line(self.reader.tail())):
            raise LoggedOut(f"{self.reader.name} asks for a login instead of {what}: the shell on its console has exited")

    def _expect(self, spawn: ReaderSpawn, patterns: list[Any], deadline: Deadline, what: str, patience: float) -> int | None:
        """The index of the pattern that matched; None if the caller should type again.

        That is after ``patience`` seconds of silence, or after _WRITING times as long if the console keeps writing. ``what``
        names the wait in errors.
        """
        longest = deadline.capped(_WRITING * patience)
        while True:
            written = self.reader.offset
            try:
                found: int = spawn.expect(patterns, timeout=min(patience, deadline.remaining))
                return found
            except pexpect.TIMEOUT:
                if deadline.expired:
                    raise deadline.expire(f"{what} on the {spawn.name}", f"last line {_last_line(self.reader.tail())!r}") from None
                if self.reader.offset == written or longest.expired:
                    return None
            except pexpect.EOF as exc:
                raise spawn.reader.ended(f"ended while waiting for {what}") from exc

    # -- commands -----------------------------------------------------------------------------------------------------

    def run(self, command: str, deadline: Deadline | None = None, *, check: bool = True) -> Output:
        """Run a shell command line in the guest.

        The shell stores the output in a variable and prints it twice or with its checksum. If a kernel message in between
        damaged it, the shell prints it again. Raises GuestCommandFailed (with ``check``), GuestDied, LoggedOut,
        DeadlineExpired.
        """
        with trace.step("guest", command, self.reader.name) as step:
            out = self._run(command, deadline or Deadline(_COMMAND))
            step.status = f"exit {out.status}" if out.status else ""
            step.size, step.output = len(out.text), out.text.encode()
        if check and out.status:
            raise GuestCommandFailed(self.reader.name, command, out.status, plain(out.text))
        return out

    def _run(self, command: str, deadline: Deadline) -> Output:
        nonce = secrets.token_hex(4)
        if "\0" in command or "\r" in command:
            raise UsageError(f"the command contains a NUL or CR: {command!r}")
        spawn = ReaderSpawn(self.reader)
        with self.reader.quoting(f"fxh-end-{nonce}".encode()):
            typed = self._in_pieces(spawn, command, deadline)
            self._type(spawn, f'{_KILL_LINE}o=$( ( {typed}\n) 2>&1; echo "+$?"); s=${{o##*+}}; o=${{o%+*}}')
            text: str | None = None
            for _ in range(_TORN):
                self._type(spawn, f"fxh_emit {nonce} {_LONG_SERIAL_PORT if self.buffer_size <= SERIAL_PORT else _LONG_TTY}")
                status, text = self._framed(spawn, nonce, deadline, command)
                if text is not None:
                    break
            if text is None:
                raise InfrastructureError(
                    f"{self.reader.name}: other output on the console damaged the output of {command!r} {_TORN} times; "
                    f"its end: {excerpt(self.reader.tail(), 3)!r}"
                )
        return Output(command, status, text.removesuffix("\n"))

    def start(self, command: str) -> None:
        """Type a command without waiting for it, because it may kill the guest."""
        spawn = ReaderSpawn(self.reader)
        self._type(spawn, self._in_pieces(spawn, command, Deadline(10)))

    @contextlib.contextmanager
    def lent(self, seconds: float = _LENT) -> Iterator[str]:
        """Lend the shell to a person: inside, it echoes what is typed. The person must leave it at its prompt.

        Yields "", or why the shell does not answer yet. Raises GuestDied, LoggedOut, and DeadlineExpired if it does not answer
        within ``seconds`` afterwards.
        """
        problem = ""
        try:
            self._synchronise(ReaderSpawn(self.reader), "the shell's prompt", Deadline(seconds), line="stty echo")
        except DeadlineExpired as exc:  # the shell may read the line later
            problem = exc.message
        yield problem
        self._synchronise(ReaderSpawn(self.reader), "the shell's prompt", Deadline(seconds), line=f"{_KILL_LINE}stty -echo")

    def _in_pieces(self, spawn: ReaderSpawn, command: str, deadline: Deadline) -> str:
        """The text to type for ``command``. A long command is first typed in pieces into a variable of the shell.

        Raises the errors of :meth:`run`.
        """
        if len(command.encode()) <= self.buffer_size - _AROUND:
            return command
        # A quote becomes five bytes, any other character at most four. The rest is for the marker.
        size = self.buffer_size // 6
        for begin in range(0, len(command), size):
            before, more = "${c}" if begin else "", shlex.quote(command[begin : begin + size])
            line = f"{'' if begin else _KILL_LINE}c={before}{more}"
            self._synchronise(spawn, f"{begin + size} bytes of a long command", deadline, line=line)
        return 'eval "$c"'

    def _type(self, spawn: ReaderSpawn, text: str) -> None:
        for line in text.split("\n"):
            spawn.sendline(line.encode())

    def _framed(self, spawn: ReaderSpawn, nonce: str, deadline: Deadline, command: str) -> tuple[int, str | None]:
        """The status and the output; None for a damaged output."""
        end = f"fxh-end-{nonce}".encode()
        spawn.searchwindowsize = 256
        written = self.reader.offset
        while self._expect(spawn, [end], deadline, f"the end of a command ({nonce})", _RETRY_SHELL) is None:
            self._check_logged_in(f"an answer to {command!r}")
            if self.reader.offset == written and b"fxh-begin-%s " % nonce.encode() in (spawn.before or b""):
                return 0, None  # the shell has printed all, so a message of another CPU has damaged the end
            written = self.reader.offset
        raw = spawn.before or b""
        status = 0
        # Undo the tty's onlcr once. For an i386 PV FreeBSD, also remove the CR that its console driver adds after each LF.
        for data in (raw.replace(b"\r\n", b"\n"), raw.replace(b"\n\r", b"\n").replace(b"\r\n", b"\n")):
            # fxh-begin-1a2b3c4d 0 d41d8cd98f00b204e9800998ecf8427e -
            head = re.search(rb"fxh-begin-%s (\d+)((?: [0-9a-f]{32})?)[ -]*\n" % nonce.encode(), data)
            if head is None:
                continue
            status, body = int(head[1]), data[head.end() : -1]
            if not head[2]:
                body, _, again = body.partition(b"\nfxh-again-%s\n" % nonce.encode())
                intact = body == again
            else:
                intact = hashlib.md5(body, usedforsecurity=False).hexdigest().encode() == head[2].strip()
            if intact:
                return status, body.decode("utf-8", "replace")
        return status, None


def _last_line(text: str) -> str:
    lines = plain(text).rstrip().splitlines()
    return lines[-1] if lines else ""
