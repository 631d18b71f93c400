# SPDX-License-Identifier: BSD-2-Clause
"""Programs in dom0 that a case waits for: the far end of a guest's connections, and others that print their progress."""

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
    """The words in front of a command in dom0 that run it in this network namespace; none for dom0's own."""
    return ["ip", "netns", "exec", namespace] if namespace else []


class Listener:
    """The output of a program in dom0, consumed in steps."""

    def __init__(self, stream: Stream, name: str) -> None:
        """``name`` names the program in errors."""
        self.stream, self._name, self._text = stream, name, b""

    def until(self, pattern: bytes, seconds: float = 30) -> re.Match[bytes]:
        """Wait for the next match of ``pattern`` and consume the output up to its end. Raises InfrastructureError without one."""
        deadline = Deadline(seconds)
        while not (found := re.search(pattern, self._text, re.DOTALL)):
            try:
                data = self.stream.read(4096, max(0.1, deadline.remaining))
            except TimeoutError:
                data = b""
            if not data:
                raise InfrastructureError(
                    f"{self._name} in dom0 did not print {pattern.decode()!r} within {seconds:g} s: {self._text.decode(errors='replace')!r}"
                )
            self._text += data
        self._text = self._text[found.end() :]
        return found

    def rest(self) -> bytes:
        """The output that was read and not consumed."""
        found, self._text = self._text, b""
        return found


@dataclass(frozen=True)
class Moved:
    """The bytes that a peer has read or written. ``error`` is empty if those were all."""

    bytes: int
    md5: str
    seconds: float
    error: str


def moved(last: bytes) -> Moved:
    """The value of a peer's last line."""
    return Moved(**ast.literal_eval(last.decode("ascii")))


class Peer:
    """A network peer (:mod:`harness.dom0.netpeer`) that runs in dom0, or in a network namespace of it."""

    def __init__(self, host: XenHost, words: list[str], namespace: str = "", *, ready: float = 30) -> None:
        """``ready``: seconds until it listens."""
        self._output = Listener(dom0_program.start(host.transport, netpeer, *words, wrapper=inside(namespace)), "the network peer")
        self.counted = ""
        """dom0's counters before the transfer; "" if the peer does not wait for the guest."""
        if words[0] not in ("connect", "send_datagrams"):
            self.counted = self._output.until(rb"(.*)listening", ready)[1].decode(errors="replace")

    def result(self, seconds: float) -> Moved:
        """Wait for the peer's end and return its result. Raises InfrastructureError if it prints none within ``seconds``."""
        last = self._output.until(rb"{[^}]*}", seconds)
        self._output.stream.close()
        return moved(last[0])

    def stop(self) -> None:
        """End the peer now."""
        self._output.stream.close()
