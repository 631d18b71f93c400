# SPDX-License-Identifier: BSD-2-Clause
"""Program for dom0: record the changes of domains in xenstore, with dom0's uptime.

    xenstore_recorder LOG PREFIX

It returns when its watches are set, and continues in the background until LOG is removed. It follows each new domain whose name
begins with PREFIX: its own nodes and its backends. A line of LOG looks like one of the kernel: ``[   12.345678] PATH = "VALUE"``.

Only nodes that say how far a device or a domain is are recorded: the toolstack writes a hundred others for each domain. Events are
handled in batches, since each switch between processes is slow under emulation. So a time is up to BATCH seconds late, and of
several values within that time the last one is recorded. The log has a limit: a guest can write its nodes without end.
"""

from __future__ import annotations

import os
import re
import select
import socket
import sys
import time

# xen/include/public/io/xs_wire.h. A header has four 32-bit numbers: type, request, transaction, length.
DIRECTORY, READ, WATCH, UNWATCH, EVENT, ERROR = 1, 2, 4, 5, 15, 16
SOCKETS = ("/run/xenstored/socket", "/var/run/xenstored/socket")
# Lines of the log for one domain, and bytes of a value.
MOST, LONGEST = 2000, 200
# Seconds of a batch, and between two looks at whether the log still exists.
BATCH, LOOK = 0.1, 10.0
# /local/domain/3/device/vif/0/state   /local/domain/0/backend/vbd/3/51712/hotplug-status   /local/domain/3/memory/target
BACKEND = re.compile(r"^/local/domain/\d+/backend/\w+/(\d+)/\d+$")
RECORDED = re.compile(
    r"/(?:state|hotplug-status|hotplug-error|error|online|control/shutdown|memory/target|device/\w+/\d+/backend)$"
    r"|^/local/domain/\d+(?:/backend/\w+/\d+/\d+)?$"
)


class Xenstore:
    """A connection to xenstored. Events that arrive while it waits for a reply are kept in ``events``."""

    def __init__(self) -> None:
        self._socket = socket.socket(socket.AF_UNIX)
        self._socket.connect(next(filter(os.path.exists, SOCKETS), SOCKETS[0]))
        self._received = b""
        self.events = []  # type: list[str]

    def request(self, kind: int, *words: str) -> str:
        """The reply to a request. Raises OSError if xenstored refuses it."""
        body = b"".join(word.encode() + b"\0" for word in words)
        self._socket.sendall(b"".join(n.to_bytes(4, "little") for n in (kind, 0, 0, len(body))) + body)
        while True:
            found, reply = self._message()
            if found == ERROR:
                raise OSError("%s: xenstored replied %r" % (words[0], reply))
            if found != EVENT:
                return reply

    def wait(self, seconds: float) -> None:
        """Receive the events of a batch, which begins within ``seconds`` or not at all."""
        # A reply may have brought some.
        self._parse()
        if not self.events and select.select([self._socket], [], [], seconds)[0]:
            time.sleep(BATCH)
            self._receive()
            self._parse()

    def _parse(self) -> None:
        while len(self._received) >= 16 and len(self._received) >= 16 + int.from_bytes(self._received[12:16], "little"):
            self._message()

    def _message(self) -> tuple[int, str]:
        while len(self._received) < 16:
            self._receive()
        kind, end = int.from_bytes(self._received[:4], "little"), 16 + int.from_bytes(self._received[12:16], "little")
        while len(self._received) < end:
            self._receive()
        text, self._received = self._received[16:end].decode(errors="replace"), self._received[end:]
        if kind == EVENT:
            self.events.append(text.partition("\0")[0])
        return kind, text

    def _receive(self) -> None:
        part = self._socket.recv(1 << 16)
        if not part:
            raise EOFError("xenstored closed the connection")
        self._received += part


class Recorder:
    """Follows domains and writes ``log``."""

    def __init__(self, log: str, prefix: str) -> None:
        self.log, self.prefix = log, prefix
        self._file = open(log, "a", buffering=1)  # noqa: SIM115 - it is open until the program ends
        self._store = Xenstore()
        self._domains = {}  # type: dict[str, list[str]]
        self._seen = {}  # type: dict[str, str]
        self._lines = {}  # type: dict[str, int]
        self._store.request(WATCH, "@introduceDomain", "")
        self._store.request(WATCH, "@releaseDomain", "")

    def run(self) -> None:
        """Record until the log is removed."""
        looked = time.monotonic()
        while True:
            self._store.wait(LOOK)
            while self._store.events:
                batch, self._store.events = self._store.events, []
                for path in dict.fromkeys(batch):
                    self.handle(path)
            if time.monotonic() - looked > LOOK:
                looked = time.monotonic()
                if not os.path.exists(self.log):
                    return

    def handle(self, path: str) -> None:
        """Record one event."""
        if path.startswith("@"):
            self._find_domains()
        elif RECORDED.search(path):
            domain = self._domain(path)
            value = self._read(path)
            # The guest can write this node, so it could name anything.
            backend = BACKEND.match(value) if path.endswith("/backend") else None
            if backend and backend[1] == domain and domain in self._domains:
                self._watch(domain, value)
            if domain in self._domains and value != self._seen.get(path):
                self._seen[path] = value
                self._write(domain, path, value)

    def _find_domains(self) -> None:
        present = set(self._list("/local/domain"))
        for domain in present - self._domains.keys() - {"0"}:
            if self._read("/local/domain/%s/name" % domain).startswith(self.prefix):
                self._domains[domain] = []
                self._lines[domain] = 0
                self._watch(domain, "/local/domain/%s" % domain)
                self._find_devices("/local/domain/%s/device" % domain)
        for domain in self._domains.keys() - present:
            self._forget(domain)

    def _find_devices(self, path: str) -> None:
        """Record the devices that a domain got before it was watched."""
        for kind in self._list(path):
            for number in self._list("%s/%s" % (path, kind)):
                for node in ("backend", "state"):
                    if self._read("%s/%s/%s/%s" % (path, kind, number, node)):
                        self.handle("%s/%s/%s/%s" % (path, kind, number, node))

    def _forget(self, domain: str) -> None:
        self._unwatch(domain)
        del self._domains[domain]
        self._seen = {path: value for path, value in self._seen.items() if self._domain(path) in self._domains}

    def _watch(self, domain: str, path: str) -> None:
        if path not in self._domains[domain]:
            self._domains[domain].append(path)
            self._store.request(WATCH, path, "")

    def _unwatch(self, domain: str) -> None:
        for path in self._domains[domain]:
            self._store.request(UNWATCH, path, "")
        self._domains[domain] = []

    def _domain(self, path: str) -> str:
        """The domid of the domain to which a node belongs: the last number of a backend's path names the frontend."""
        # /local/domain/0/backend/vbd/3/51712/state
        words = path.split("/")
        return str(words[6] if words[4:5] == ["backend"] and len(words) > 6 else words[3])

    def _list(self, path: str) -> list[str]:
        """The names of a node's children."""
        try:
            return [name for name in self._store.request(DIRECTORY, path).split("\0") if name]
        except OSError:
            return []

    def _read(self, path: str) -> str:
        """The value of a node; empty if it does not exist."""
        try:
            return self._store.request(READ, path)
        except OSError:
            return ""

    def _write(self, domain: str, path: str, value: str) -> None:
        self._lines[domain] += 1
        if self._lines[domain] <= MOST:
            text = value[:LONGEST].encode("unicode_escape").decode()
            self._file.write('[%12.6f] %s = "%s"\n' % (uptime(), path, text))
        elif self._lines[domain] == MOST + 1:
            self._file.write("[%12.6f] /local/domain/%s: no further changes are recorded\n" % (uptime(), domain))
            self._unwatch(domain)


def uptime() -> float:
    """Seconds since dom0 booted, as in /proc/uptime on Linux."""
    return time.clock_gettime(getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC))


def main() -> None:
    recorder = Recorder(*sys.argv[1:3])
    if os.fork():
        os._exit(0)
    os.setsid()
    nothing = os.open(os.devnull, os.O_RDWR)
    for descriptor in range(3):
        os.dup2(nothing, descriptor)
    recorder.run()


if __name__ == "__main__":
    main()
