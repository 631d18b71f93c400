# SPDX-License-Identifier: BSD-2-Clause
"""xenstore as seen from dom0."""

from __future__ import annotations

import contextlib

from harness.deadline import Deadline
from harness.transport import Transport
from harness.xen.event_wait import Pause, wait_on_output

# What xenstored tells when a domain is there, and when one is shut down or gone (docs/misc/xenstore.txt).
DOMAINS = ("@introduceDomain", "@releaseDomain")


class Xenstore:
    """Reads and writes by the command-line tools. Values are what guests wrote: hostile text."""

    def __init__(self, transport: Transport) -> None:
        self._transport = transport

    def read(self, path: str) -> str | None:
        """The value at ``path``, or None where there is none."""
        done = self._transport.run(["xenstore-read", path], check=False)
        return done.text.removesuffix("\n") if done.status == 0 else None

    def write(self, path: str, value: str) -> None:
        """Raises CommandFailed."""
        self._transport.run(["xenstore-write", "--", path, value])

    def remove(self, path: str) -> None:
        """Remove a path and what is below it. Raises CommandFailed."""
        self._transport.run(["xenstore-rm", path])

    def children(self, path: str) -> tuple[str, ...]:
        """Names directly below ``path``; none where the path is not there."""
        done = self._transport.run(["xenstore-list", path], check=False)
        return tuple(done.text.split()) if done.status == 0 else ()

    def watch(self, *paths: str, seconds: float) -> contextlib.AbstractContextManager[Pause]:
        """For at most ``seconds``: pauses that end when xenstored tells of one of ``paths`` (:func:`harness.xen.event_wait.wait_on_output`)."""
        # The first event of each path is the watch's own (docs/misc/xenstore.txt, WATCH): once it has come, none is missed.
        return wait_on_output(self._transport, ["xenstore-watch", *paths], seconds=seconds, own=len(paths))

    def tree(self, path: str) -> dict[str, str]:
        """All paths at and below ``path`` with their values."""
        done = self._transport.run(["xenstore-ls", "-f", path], Deadline(60), check=False)
        return parse_tree(done.text)


def parse_tree(text: str) -> dict[str, str]:
    """``xenstore-ls -f``: a line ``path = "value"`` each, control characters in values written as escapes."""
    found = {}
    for line in text.splitlines():
        # /local/domain/0/name = "Domain-0"
        path, equals, value = line.partition(" = ")
        if equals and path.startswith("/"):
            found[path] = value[1:-1] if len(value) >= 2 and value[0] == value[-1] == '"' else value
    return found
