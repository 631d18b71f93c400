# SPDX-License-Identifier: BSD-2-Clause
"""A client of xenstore in the guest, over the device for its programs: /dev/xen/xenstore or /dev/xen/xenbus."""

from __future__ import annotations

import re
import shlex
import time

from harness.guests.guest import Guest
from harness.safetext import plain
from harness.xen import xenstore_wire
from harness.xen.xenstore_wire import Kind, Message

# Seconds for an answer.
_ANSWER = 30.0
RECEIVE = "dd bs=8192 count=1 <&8 2>/dev/null"
"""A shell command that prints the next data of the device, which is open as descriptor 8. It waits for data."""
# Reads commands from the FIFO {base}. The output of each goes to xenstore as one write(2), and the answer into {base}.N as hex;
# {base}.N.status gets the status of the write. It ends with the FIFO's line "end", or with the guest. It tries to open the device first,
# because in some shells a failed exec ends the relay before it can say so.
_RELAY = """
( : 8<>{device} ) || exit
rm -f {base}*; mkfifo {base} || exit
( n=0; exec 7<>{base} 8<>{device} || exit
  while read -r line <&7 && [ "$line" != end ]; do
    n=$((n+1)); eval "$line" > {base}.out
    cat {base}.out >&8; s=$?
    [ $s != 0 ] || {receive} | od -An -v -tx1 > {base}.in
    [ $s != 0 ] || mv {base}.in {base}.$n
    echo $s > {base}.$n.status
  done; rm -f {base}* ) > /dev/null 2>&1 &
"""


class RefusedWrite(AssertionError):
    """The device refused a request, so xenstored did not see it."""


def command(message: Message) -> str:
    """A shell command that prints the message. Long runs of one character in its body become short."""
    parts, data = [], message.packed()
    for run in re.finditer(rb"(.)\1{255,}|(?:(?!(.)\2{255}).)+", data, re.DOTALL):
        if run[1]:
            parts.append(f"head -c {len(run[0])} /dev/zero | tr '\\0' '\\{run[1][0]:03o}'")
        else:
            parts.append(f"printf '{octal(run[0])}'")
    return "; ".join(parts) if len(parts) == 1 else f"{{ {'; '.join(parts)}; }}"


def octal(data: bytes) -> str:
    """``data`` as a format of printf(1): letters and digits as they are, other bytes as octal escapes."""
    return "".join(chr(byte) if chr(byte).isalnum() and byte < 128 else f"\\{byte:03o}" for byte in data)


class XenstoreClient:
    """A connection that stays open between commands, also across a save and a restore."""

    def __init__(self, guest: Guest, name: str = "1") -> None:
        """Open the connection ``name`` in the guest. Raises AssertionError if the guest refuses it."""
        self.guest, self._base = guest, f"/tmp/fxh-xs-{name}"
        self._asked = self._tags = 0
        self._rest = b""
        self.events: list[Message] = []
        """Events of watches that arrived with answers, and that no :meth:`event` has returned."""
        device = guest.os.xenstore_device
        relay = _RELAY.format(base=self._base, device=device, receive=RECEIVE).strip()
        if (started := guest.run(relay, check=False)).status:
            raise AssertionError(f"a program cannot open {device}: {plain(started.text)}")

    def close(self) -> None:
        self.guest.sh(f"[ ! -p {self._base} ] || echo end > {self._base}")

    def ask(self, kind: Kind, *words: str | bytes, transaction: int = 0) -> Message:
        """Send a request whose body is the words, each with a NUL, and return the answer.

        The value of a WRITE has no NUL (docs/misc/xenstore.txt). Raises RefusedWrite, GuestDied (a hang) without an answer, and
        AssertionError for an answer to another request.
        """
        parts = [word.encode() if isinstance(word, str) else word for word in words]
        body = b"\0".join(parts) + (b"" if kind is Kind.WRITE else b"\0")
        self._tags += 1
        message = Message(kind, body, self._tags, transaction)
        seen = self._exchange(command(message))
        while True:
            answers = [one for one in seen if one.kind != Kind.WATCH_EVENT]
            self.events += [one for one in seen if one.kind == Kind.WATCH_EVENT]
            if answers:
                break
            seen = self._exchange(":")
        answer = answers[0]
        if len(answers) > 1 or answer.request != self._tags or answer.kind not in (kind, Kind.ERROR):
            got = ", ".join(f"{one} for request {one.request}" for one in answers)
            raise AssertionError(f"request {self._tags}, {message}, got {got}")
        return answer

    def event(self) -> Message:
        """The next event of a watch. Raises GuestDied (a hang) if none arrives."""
        while not self.events:
            self.events += self._exchange(":")
        return self.events.pop(0)

    def _exchange(self, line: str) -> list[Message]:
        """Let the relay send the output of ``line``, and return the data that the device then has."""
        self._asked += 1
        base = f"{self._base}.{self._asked}"
        self.guest.sh(f"printf '%s\\n' {shlex.quote(line)} > {self._base}")
        end = time.monotonic() + _ANSWER * self.guest.scale
        look = f"if [ -s {base}.status ]; then cat {base}.status {base} 2>/dev/null; rm -f {base}.status {base}; fi"
        while not (text := self.guest.run(look, check=False).text):
            if time.monotonic() > end:
                raise self.guest.hang(
                    f"{self.guest.os.xenstore_device} has nothing to read after {_ANSWER * self.guest.scale:.0f} s"
                )
            time.sleep(0.1)
        status, _, rest = text.partition("\n")
        if status != "0":
            raise RefusedWrite(status)
        try:
            # A read may end within a message.
            found, self._rest = xenstore_wire.split(self._rest + bytes.fromhex(rest))
        except ValueError as exc:
            raise AssertionError(f"{self.guest.os.xenstore_device} gives {exc}") from exc
        return found


def available(guest: Guest) -> bool:
    """Whether the guest has the device."""
    return guest.run(f"[ -c {guest.os.xenstore_device} ]", check=False).status == 0
