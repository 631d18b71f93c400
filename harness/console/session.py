# SPDX-License-Identifier: BSD-2-Clause
"""A shell on a console: login, then commands whose output and status are exact, whatever the kernel prints in between."""

from __future__ import annotations

import hashlib
import re
import secrets
import shlex
from dataclasses import dataclass
from typing import Any

import pexpect
from pexpect.spawnbase import SpawnBase

from harness import trace
from harness.console.clean import Cleaner
from harness.console.reader import ConsoleReader
from harness.console.text import excerpt, plain
from harness.deadline import Deadline
from harness.errors import GuestCommandFailed, InfrastructureError, LoggedOut, UsageError

PROMPT = "fxh# "
# Bytes that a console takes before it is read from: FreeBSD's tty has no longer line (MAX_INPUT; sys/kern/tty_inq.c), busybox's
# neither.
TTY = 900
# Of a serial port's FreeBSD keeps 384 between an interrupt and its tty (sys/dev/uart/uart_core.c, sc_rxbufsz) and forgets the
# rest, where a UART brings them faster than a line does: an emulated one.
SERIAL_PORT = 360
# What :meth:`Session.run` types besides its command before it waits for an answer.
_AROUND = 100
_LOGIN = 60.0
_COMMAND = 60.0
# What every shell of ours knows: ``fxh_digest`` prints the digest of what is on its input (md5 is FreeBSD's, md5sum busybox's),
# ``fxh_emit NONCE LONG`` the output o and the status s of a command: twice; or, when it is LONG, with its digest, which in an
# emulated guest takes processes that cost more than most commands. The markers are cut in two so that an echo of these lines
# cannot be taken for them.
_FUNCTIONS = (
    "fxh_digest() { if command -v md5 >/dev/null; then md5; else md5sum; fi; }; "
    'fxh_emit() { d=; [ ${#o} -lt $2 ] || d=$(printf %s "$o" | fxh_digest); echo fxh-"be"gin-$1 $s $d; '
    r'printf "%s\n" "$o"; [ "$d" ] || { echo fxh-"ag"ain-$1; printf "%s\n" "$o"; }; echo fxh-"en"d-$1; }'
)
# What a tty forgets the present line at: something may have been typed into it before us.
_KILL_LINE = "\x15"
# From so many characters on an output is long: a serial port of an emulated machine may write seven bytes a second.
_LONG_TTY, _LONG_SERIAL_PORT = 400, 64
# Seconds without an answer after which a login, and then a shell, is asked again; and how many times as long where it goes on
# writing. It may be echoing what was typed already: an emulated UART of a guest with four vCPUs was seen to write seven bytes a
# second, and each line more makes it later.
_ASK_LOGIN, _ASK_SHELL, _ASK_RESUMED = 3.0, 5.0, 2.0
_GOES_ON = 12
# Attempts at reading an output whose checksum is right: a busy machine's kernel may have much to say.
_TORN = 6
# What a terminal answers to "where is the cursor" (ESC [ 6 n): resizewin(1) of FreeBSD's login profile waits for it.
_CURSOR_QUESTION, _CURSOR_ANSWER = b"\x1b[6n", b"\x1b[50;200R"

# ESC   ESC [   ESC [ 6
_CUT = re.compile(rb"\x1b(?:\[[0-?]{0,16})?\Z")

# login:     control login:
_LOGIN_PROMPT = re.compile(r"(?:\S+ )?login:")
# root@fbsd:~ #     $     #     %      control#
_ANY_PROMPT = rb"(?:^|[\r\n])[^\r\n]{0,80}[#$%>] ?(?:\x1b\[[0-9;]*[mKn])*$"


@dataclass(frozen=True)
class Output:
    """What a command in the guest said (stdout and stderr together, without the last line end) and how it ended."""

    command: str
    status: int
    text: str


class ReaderSpawn(SpawnBase):  # type: ignore[type-arg]
    """pexpect over a console that a reader reads: ``expect`` sees what came since this was made.

    The guest's death ends any wait with GuestDied.
    """

    def __init__(self, reader: ConsoleReader, since: int | None = None) -> None:
        super().__init__(timeout=_COMMAND, maxread=1 << 16, searchwindowsize=1 << 14)
        self.reader = reader
        self._position = reader.offset if since is None else since
        self.answers = True
        """Whether a question for the cursor's place is answered, as a terminal would."""
        self.obeys = False
        """Whether escape sequences are left out, as a terminal would: for prompts, and not where the output has to be exact."""
        self._rest = b""
        self.name = f"console of {reader.name}"

    def read_nonblocking(self, size: int = 1, timeout: float | None = -1) -> bytes:
        """Up to ``size`` bytes. Raises pexpect's TIMEOUT and EOF, and GuestDied."""
        if timeout == -1:
            timeout = self.timeout
        data = self.reader.read(self._position, size, Deadline(1e9 if timeout is None else timeout))
        if data is None:
            self.flag_eof = True
            raise pexpect.EOF(f"the {self.name} ended")
        if not data:
            raise pexpect.TIMEOUT(f"nothing more came from the {self.name}")
        self._position += len(data)
        # A sequence may come in two pieces: the first waits for the second.
        seen, self._rest = self._rest + data, b""
        if self.answers and _CURSOR_QUESTION in seen:
            self.send(_CURSOR_ANSWER)
        cut = _CUT.search(seen)
        if cut and (self.obeys or self.answers):
            self._rest = cut[0]
            if self.obeys:
                seen = seen[: cut.start()]
        return Cleaner().text(seen) if self.obeys else data

    def send(self, text: bytes) -> int:
        self.reader.write(text)
        return len(text)

    def sendline(self, text: bytes = b"") -> int:
        return self.send(text + b"\r")


class Session:
    """A root shell on a guest's console. :meth:`login` first, or :meth:`resume` where one was left logged in."""

    def __init__(self, reader: ConsoleReader, at_once: int = TTY) -> None:
        """``at_once``: bytes that the console takes without loss before the guest has read them."""
        self.reader, self.at_once = reader, at_once

    # -- coming in ----------------------------------------------------------------------------------------------------

    def login(self, user: str = "root", password: str = "", deadline: Deadline | None = None) -> Session:
        """From ``login:`` to a shell of ours. Raises GuestDied, InfrastructureError when the login fails."""
        deadline = deadline or Deadline(_LOGIN)
        # The last prompt: what was said before it was said to others.
        since = max(self.reader.boot_offset, self.reader.offset - 512)
        spawn = ReaderSpawn(self.reader, since + max(0, self.reader.since(since).rfind(b"login:")))
        spawn.obeys = True
        refused = re.compile(rb"Login incorrect")
        asked = 0
        while True:
            # A login: that was there before us counts, and so does one that a kernel message pushed away: ask again.
            match self._expect(spawn, [rb"login: ?$", rb"[Pp]assword:", refused, _ANY_PROMPT], deadline, "a login", _ASK_LOGIN):
                case 0:
                    asked += 1
                    if asked > 4:
                        raise InfrastructureError(f"{self.reader.name}: login as {user} is asked for again and again")
                    spawn.sendline(user.encode())
                case 1:
                    spawn.sendline(password.encode())
                case 2:
                    raise InfrastructureError(
                        f"{self.reader.name}: login as {user} refused", hint="give the image a root without a password"
                    )
                case 3:
                    break
                case None:
                    spawn.sendline()
        return self._take_over(spawn, deadline)

    def resume(self, deadline: Deadline | None = None) -> Session:
        """The shell that an earlier session left at its prompt (a restored checkpoint)."""
        deadline = deadline or Deadline(_LOGIN)
        self._in_step(ReaderSpawn(self.reader), "the shell's prompt", deadline, _ASK_RESUMED)
        return self

    def _take_over(self, spawn: ReaderSpawn, deadline: Deadline) -> Session:
        """Replace whatever shell there is (csh, sh) by a plain sh that neither echoes nor edits."""
        start = "exec env -i HOME=/root TERM=dumb PATH=$PATH PS1=fxh'# ' /bin/sh"
        while True:
            spawn.sendline(start.encode())
            if self._expect(spawn, [re.escape(PROMPT).encode()], deadline, "a shell of ours", _ASK_SHELL) is not None:
                break
        spawn.obeys = False
        # Its question may come after we typed on, and the answer would become part of the next line. It waits for none.
        spawn.answers = False
        # FreeBSD's sh edits its lines by libedit, which echoes them by itself; busybox's has no such option.
        # tab0: FreeBSD's getty for a serial line lets the terminal driver write blanks for tabs, and the sum would not fit.
        quiet = "set +o emacs 2>/dev/null; set +o vi 2>/dev/null; stty -echo tab0; PS2=; echo fxh'-'quiet"
        while True:
            spawn.sendline(quiet.encode())
            if (
                self._expect(spawn, [rb"fxh-quiet\r*\n\r*" + re.escape(PROMPT).encode()], deadline, "a quiet shell", _ASK_SHELL)
                is not None
            ):
                break
        # An answer about the cursor that came too late for the editing shell would be the beginning of the next command.
        self._in_step(spawn, "the shell's prompt", deadline)
        self._in_step(spawn, "what our shells know", deadline, line=_FUNCTIONS)
        return self

    def _in_step(self, spawn: ReaderSpawn, what: str, deadline: Deadline, patience: float = _ASK_SHELL, *, line: str = "") -> None:
        """Type a line once, and wait until the shell has read all of it and answered the last that was typed.

        What is typed next finds its buffers empty, and what comes next is the next command's. So each question has an answer of
        its own: one that is late, and is asked again, would else leave a second answer in the middle of the next output.
        """
        while True:
            nonce = secrets.token_hex(2)
            self._type(spawn, line)
            # Cut in two, so that an echo of it cannot be taken for the answer. A kernel message may cut that in two, as well.
            spawn.sendline(f"echo fxh'-'{nonce}".encode())
            answer = rf"fxh-{nonce}\r*\n\r*{re.escape(PROMPT)}".encode()
            if self._expect(spawn, [answer], deadline, what, patience) is not None:
                return
            self._still_in(what)
            line = ""

    def _still_in(self, what: str) -> None:
        """Asked where no answer came. A shell can be killed: by a kernel that is short of memory, for one."""
        if _LOGIN_PROMPT.fullmatch(_last_line(self.reader.tail())):
            raise LoggedOut(f"{self.reader.name} asks for a login instead of {what}: the shell at its console has ended")

    def _expect(self, spawn: ReaderSpawn, patterns: list[Any], deadline: Deadline, what: str, patience: float) -> int | None:
        """Which of ``patterns`` came; None when the console was silent for ``patience`` seconds and the caller should nudge.

        None also for one that has gone on writing for long.
        """
        longest = deadline.capped(_GOES_ON * patience)
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
                raise InfrastructureError(f"the {spawn.name} ended while waiting for {what}") from exc

    # -- commands -----------------------------------------------------------------------------------------------------

    def run(self, command: str, deadline: Deadline | None = None, *, check: bool = True) -> Output:
        """Run a shell command line in the guest.

        The output is caught in a variable and printed twice or with its checksum, so that a kernel message in the middle of it
        is noticed and the output printed again. Raises GuestCommandFailed (with ``check``), GuestDied, LoggedOut,
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
            raise UsageError(f"command with a control character: {command!r}")
        spawn = ReaderSpawn(self.reader)
        with self.reader.quoting(f"fxh-end-{nonce}".encode()):
            typed = self._in_pieces(spawn, command, deadline)
            self._type(spawn, f'{_KILL_LINE}o=$( ( {typed}\n) 2>&1; echo "+$?"); s=${{o##*+}}; o=${{o%+*}}')
            text: str | None = None
            for _ in range(_TORN):
                self._type(spawn, f"fxh_emit {nonce} {_LONG_SERIAL_PORT if self.at_once <= SERIAL_PORT else _LONG_TTY}")
                status, text = self._framed(spawn, nonce, deadline, command)
                if text is not None:
                    break
            if text is None:
                raise InfrastructureError(
                    f"{self.reader.name}: the output of {command!r} was torn {_TORN} times by other output on the console; "
                    f"the end of it: {excerpt(self.reader.tail(), 3)!r}"
                )
        return Output(command, status, text.removesuffix("\n"))

    def start(self, command: str) -> None:
        """Type a command and do not wait for it (it may kill the guest)."""
        spawn = ReaderSpawn(self.reader)
        self._type(spawn, self._in_pieces(spawn, command, Deadline(10)))

    def _in_pieces(self, spawn: ReaderSpawn, command: str, deadline: Deadline) -> str:
        """What to type for ``command``: itself; or, when it is too long for that, a variable that the guest has it in by now.

        Raises as :meth:`run`.
        """
        if len(command.encode()) <= self.at_once - _AROUND:
            return command
        # A quote becomes five bytes, any other character four at most; the rest is for the marker.
        size = self.at_once // 6
        for begin in range(0, len(command), size):
            before, more = "${c}" if begin else "", shlex.quote(command[begin : begin + size])
            line = f"{'' if begin else _KILL_LINE}c={before}{more}"
            self._in_step(spawn, f"{begin + size} bytes of a long command", deadline, line=line)
        return 'eval "$c"'

    def _type(self, spawn: ReaderSpawn, text: str) -> None:
        for line in text.split("\n"):
            spawn.sendline(line.encode())

    def _framed(self, spawn: ReaderSpawn, nonce: str, deadline: Deadline, command: str) -> tuple[int, str | None]:
        """Status and output, or None for an output that did not come whole."""
        end = f"fxh-end-{nonce}".encode()
        spawn.searchwindowsize = 256
        while self._expect(spawn, [end], deadline, f"the end of a command ({nonce})", _ASK_SHELL) is None:
            self._still_in(f"an answer to {command!r}")
        raw = spawn.before or b""
        status = 0
        # Undoes the tty's onlcr, once; of an i386 PV FreeBSD also the CR that its console driver puts behind each LF.
        for data in (raw.replace(b"\r\n", b"\n"), raw.replace(b"\n\r", b"\n").replace(b"\r\n", b"\n")):
            # fxh-begin-1a2b3c4d 0 d41d8cd98f00b204e9800998ecf8427e -
            head = re.search(rb"fxh-begin-%s (\d+)((?: [0-9a-f]{32})?)[ -]*\n" % nonce.encode(), data)
            if head is None:
                continue
            status, body = int(head[1]), data[head.end() : -1]
            if not head[2]:
                body, _, again = body.partition(b"\nfxh-again-%s\n" % nonce.encode())
                whole = body == again
            else:
                whole = hashlib.md5(body, usedforsecurity=False).hexdigest().encode() == head[2].strip()
            if whole:
                return status, body.decode("utf-8", "replace")
        return status, None


def _last_line(text: str) -> str:
    lines = plain(text).rstrip().splitlines()
    return lines[-1] if lines else ""
