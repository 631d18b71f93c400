"""xenstore as seen from dom0."""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable, Iterator

from harness.deadline import Deadline
from harness.transport import Transport

# What xenstored tells when a domain is there, and when one is shut down or gone (docs/misc/xenstore.txt).
DOMAINS = ("@introduceDomain", "@releaseDomain")
# Seconds for a process to start in a dom0 that is busy, under emulation.
_BEGINS = 60.0


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

    @contextlib.contextmanager
    def watch(self, *paths: str, seconds: float) -> Iterator[Callable[[float], None]]:
        """For at most ``seconds``: a pause, given its longest in seconds, that ends when xenstored tells of one of ``paths``.

        What it tells between two pauses ends the next one. Waiting so costs dom0 nothing. Raises TransportError, and
        DeadlineExpired when the watch does not begin.
        """
        stream = self._transport.open(["timeout", str(max(1, math.ceil(seconds))), "xenstore-watch", *paths])

        def pause(longest: float) -> None:
            begun = time.monotonic()
            try:
                if stream.read(4096, longest):
                    return
            except TimeoutError:
                return
            time.sleep(max(0.0, begun + longest - time.monotonic()))  # the watch has ended

        try:
            # The first event of each path is the watch's own (docs/misc/xenstore.txt, WATCH): once it has come, none is missed.
            own, beginning = b"", Deadline(_BEGINS)
            while own.count(b"\n") < len(paths):
                with contextlib.suppress(TimeoutError):
                    told = stream.read(4096, beginning.remaining)
                    if not told:
                        break
                    own += told
                if beginning.expired:
                    raise beginning.expire(f"xenstore-watch {' '.join(paths)} to begin")
            yield pause
        finally:
            stream.close()

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
