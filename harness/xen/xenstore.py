# SPDX-License-Identifier: BSD-2-Clause
"""Access to xenstore from dom0."""

from __future__ import annotations

import contextlib

from harness.deadline import Deadline
from harness.transport import Transport
from harness.xen.event_wait import Pause, wait_on_output

# Watches that fire when a domain is introduced, and when one shuts down or is gone (docs/misc/xenstore.txt).
DOMAINS = ("@introduceDomain", "@releaseDomain")


class Xenstore:
    """Reads and writes with the command-line tools. Guests write values, so treat them as hostile text."""

    def __init__(self, transport: Transport) -> None:
        self._transport = transport

    def read(self, path: str) -> str | None:
        """The value at ``path``, or None if there is none."""
        done = self._transport.run(["xenstore-read", path], check=False)
        return done.text.removesuffix("\n") if done.status == 0 else None

    def write(self, path: str, value: str) -> None:
        """Write a value. Raises CommandFailed."""
        self._transport.run(["xenstore-write", "--", path, value])

    def remove(self, path: str) -> None:
        """Remove a path and all paths below it. Raises CommandFailed."""
        self._transport.run(["xenstore-rm", path])

    def children(self, path: str) -> tuple[str, ...]:
        """The names directly below ``path``; () if it does not exist."""
        done = self._transport.run(["xenstore-list", path], check=False)
        return tuple(done.text.split()) if done.status == 0 else ()

    def watch(self, *paths: str, seconds: float) -> contextlib.AbstractContextManager[Pause]:
        """Pauses that end when a watch on one of ``paths`` fires, for at most ``seconds``.

        See :func:`harness.xen.event_wait.wait_on_output`.
        """
        # Each watch fires once when it is registered (docs/misc/xenstore.txt, WATCH). After that no change is missed.
        return wait_on_output(self._transport, ["xenstore-watch", *paths], seconds=seconds, own=len(paths))

    def tree(self, path: str) -> dict[str, str]:
        """The values of ``path`` and of all paths below it."""
        done = self._transport.run(["xenstore-ls", "-f", path], Deadline(60), check=False)
        return parse_tree(done.text)


def parse_tree(text: str) -> dict[str, str]:
    """Parse ``xenstore-ls -f``: lines ``path = "value"``. Control characters in values stay escaped."""
    found = {}
    for line in text.splitlines():
        # /local/domain/0/name = "Domain-0"
        path, equals, value = line.partition(" = ")
        if equals and path.startswith("/"):
            found[path] = value[1:-1] if len(value) >= 2 and value[0] == value[-1] == '"' else value
    return found
