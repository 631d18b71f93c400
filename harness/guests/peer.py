# SPDX-License-Identifier: BSD-2-Clause
"""Programs in dom0 that a case talks to: the far end of a guest's connections, and whatever else says how far it is."""

from __future__ import annotations

import ast
import re
from dataclasses import dataclass

from harness.deadline import Deadline
from harness.dom0 import netpeer
from harness.errors import InfrastructureError
from harness.hosts.host import XenHost
from harness.transport import Stream
from harness.xen import dom0_program


def inside(namespace: str) -> list[str]:
    """What goes before a command in dom0 that shall run in this network namespace; nothing for dom0's own."""
    return ["ip", "netns", "exec", namespace] if namespace else []


class Listener:
    """What a program in dom0 says, taken up piece by piece."""

    def __init__(self, stream: Stream, who: str) -> None:
        self.stream, self._who, self._text = stream, who, b""

    def until(self, pattern: bytes, seconds: float = 30) -> re.Match[bytes]:
        """The next place that matches ``pattern``. Raises InfrastructureError when it does not come."""
        deadline = Deadline(seconds)
        while not (found := re.search(pattern, self._text, re.DOTALL)):
            try:
                data = self.stream.read(4096, max(0.1, deadline.remaining))
            except TimeoutError:
                data = b""
            if not data:
                raise InfrastructureError(
                    f"{self._who} in dom0 does not say {pattern.decode()!r}: {self._text.decode(errors='replace')!r}"
                )
            self._text += data
        self._text = self._text[found.end() :]
        return found


@dataclass(frozen=True)
class Moved:
    """What a peer has read or written. ``error`` is empty where that was all."""

    bytes: int
    md5: str
    seconds: float
    error: str


def moved(last: bytes) -> Moved:
    """From a peer's last line."""
    return Moved(**ast.literal_eval(last.decode("ascii")))


class Peer:
    """A program at work in dom0 (or in a network namespace of it)."""

    def __init__(self, host: XenHost, words: list[str], namespace: str = "") -> None:
        self._said = Listener(dom0_program.start(host.transport, netpeer, *words, wrapper=inside(namespace)), "the network peer")
        if words[0] not in ("connect", "send_datagrams"):
            self._said.until(b"listening")

    def result(self, seconds: float) -> Moved:
        """What it says at its end. Raises InfrastructureError when it says nothing."""
        last = self._said.until(rb"{[^}]*}", seconds)
        self._said.stream.close()
        return moved(last[0])

    def stop(self) -> None:
        """End it, whatever it does."""
        self._said.stream.close()
