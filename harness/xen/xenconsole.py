# SPDX-License-Identifier: BSD-2-Clause
"""Connects to a domain's console with xenconsole."""

from __future__ import annotations

import contextlib
import re
import threading

from harness.errors import TransportError
from harness.transport import Stream, Transport
from harness.xen.toolstack import ConsoleKind

_NODES = {"pv": "console/tty", "serial": "serial/0/tty"}
# Arguments: domid, kind, xenstore node of the console, and of a serial port whose output is shown as well.
# xenconsole exits if xenconsoled has not written the console's tty to xenstore within five seconds
# (tools/console/client/main.c). A busy host takes longer to recreate a domain.
# One xenconsole at a time can have a domain (console_lock()), so cat reads the serial port, and ends with xenconsole.
_CONSOLE_SCRIPT = """
n=0
until xenstore-exists "$3" || [ $n -ge 300 ]; do n=$((n + 1)); sleep 0.2; done
[ "$4" ] || exec xl console -t "$2" "$1"
{ port=$(xenstore-read "$4") && stty raw -echo < "$port" && exec cat "$port"; } 2> /dev/null &
xl console -t "$2" "$1"
status=$?
kill $! 2> /dev/null
exit $status
"""
# Send the escape character at most this often, and wait this many seconds for xenconsole to exit each time.
_ESCAPES, _ESCAPE_SECONDS = 5, 1.0
# xenconsole's only output if another one has the console (tools/console/client/main.c, console_lock()).
# xenconsole: Could not lock /var/run/xen/console.lock...
_REFUSED = re.compile(rb"\s*(xenconsole: Could not (?:open|lock) [^\r\n]*)\s*")
_REFUSAL = 300


def attach(transport: Transport, domain: str | int, *, kind: ConsoleKind = "pv", new: bool = True) -> ConsoleStream:
    """See :meth:`harness.xen.toolstack.Toolstack.console`. A console that is not new shows no serial port in addition."""
    main = "serial" if kind == "serial" else "pv"
    argv = ["xl", "console", "-t", main, str(domain)]
    if new and isinstance(domain, int):
        shown = [f"/local/domain/{domain}/{_NODES[name]}" for name in (main, *(["serial"] if kind == "both" else []))]
        argv = ["sh", "-c", _CONSOLE_SCRIPT, "sh", str(domain), main, *shown]
    # xenconsole reads input from a terminal only.
    return ConsoleStream(transport.open(argv, pty=True))


class ConsoleStream:
    """A stream from xenconsole. Closing it sends Ctrl-] first, because some versions survive a hangup."""

    def __init__(self, stream: Stream) -> None:
        self._stream = stream
        self._first = b""
        self._ended = threading.Event()

    def read(self, size: int, timeout: float | None = None) -> bytes:
        """See :class:`Stream`. Raises TransportError if xenconsole did not get the console, because the guest has not ended then."""
        chunk = self._stream.read(size, timeout)
        if len(self._first) <= _REFUSAL:
            self._first += chunk
        if not chunk:
            self._ended.set()
            if refused := _REFUSED.fullmatch(self._first):
                raise TransportError(
                    refused[1].decode("ascii", "replace"), hint="another `xl console` has this console: end it with Ctrl-]"
                )
        return chunk

    def write(self, data: bytes) -> None:
        self._stream.write(data)

    def leave(self) -> None:
        """See :meth:`harness.xen.toolstack.Console.leave`."""
        with contextlib.suppress(TransportError):
            for _ in range(_ESCAPES):
                if self._ended.is_set():
                    break
                # Repeat this: xenconsole ignores it if one read returns other input, too (tools/console/client/main.c).
                self._stream.write(b"\x1d")
                self._ended.wait(_ESCAPE_SECONDS)

    def close(self) -> None:
        with contextlib.suppress(TransportError):
            self._stream.write(b"\x1d")
        self._stream.close()
