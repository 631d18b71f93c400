# SPDX-License-Identifier: BSD-2-Clause
"""A domain's console, as xenconsole gives it."""

from __future__ import annotations

import contextlib
import re
import threading

from harness.errors import TransportError
from harness.transport import Stream, Transport

# xenconsole gives up when xenconsoled has not told the console's tty within five seconds (tools/console/client/main.c),
# and a busy host takes longer to re-create a domain.
_CONSOLE_SCRIPT = """
n=0
until xenstore-exists "$1" || [ $n -ge 300 ]; do n=$((n + 1)); sleep 0.2; done
exec xl console -t "$2" "$3"
"""
# Who leaves a console asks its xenconsole to go so often, and gives it so long each time.
_GOODBYES, _GOODBYE = 5, 1.0
# All that is read from a xenconsole that another one keeps from the console (tools/console/client/main.c, console_lock()).
_REFUSED = re.compile(rb"\s*(xenconsole: Could not (?:open|lock) [^\r\n]*)\s*")
_REFUSAL = 300


def attach(transport: Transport, domain: str | int, *, serial: bool = False, new: bool = True) -> ConsoleStream:
    """See :meth:`harness.xen.toolstack.Toolstack.console`."""
    kind, node = ("serial", "serial/0/tty") if serial else ("pv", "console/tty")
    argv = ["xl", "console", "-t", kind, str(domain)]
    if new and isinstance(domain, int):
        argv = ["sh", "-c", _CONSOLE_SCRIPT, "sh", f"/local/domain/{domain}/{node}", kind, str(domain)]
    # Without a terminal xenconsole takes no input.
    return ConsoleStream(transport.open(argv, pty=True))


class ConsoleStream:
    """A stream from xenconsole. Closing it says goodbye first (Ctrl-]): a hangup alone leaves some versions behind."""

    def __init__(self, stream: Stream) -> None:
        self._stream = stream
        self._first = b""
        self._ended = threading.Event()

    def read(self, size: int, timeout: float | None = None) -> bytes:
        """See :class:`Stream`. Raises TransportError where xenconsole did not get the console: that is not the guest's end."""
        chunk = self._stream.read(size, timeout)
        if len(self._first) <= _REFUSAL:
            self._first += chunk
        if not chunk:
            self._ended.set()
            if refused := _REFUSED.fullmatch(self._first):
                raise TransportError(
                    refused[1].decode("ascii", "replace"), hint="somebody else is at this console: end his `xl console` (Ctrl-])"
                )
        return chunk

    def write(self, data: bytes) -> None:
        self._stream.write(data)

    def leave(self) -> None:
        """See :meth:`harness.xen.toolstack.Console.leave`."""
        with contextlib.suppress(TransportError):
            for _ in range(_GOODBYES):
                if self._ended.is_set():
                    break
                # Heeded only where it is all that xenconsole reads at once (tools/console/client/main.c): so, again.
                self._stream.write(b"\x1d")
                self._ended.wait(_GOODBYE)

    def close(self) -> None:
        with contextlib.suppress(TransportError):
            self._stream.write(b"\x1d")
        self._stream.close()
