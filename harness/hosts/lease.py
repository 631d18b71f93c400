# SPDX-License-Identifier: BSD-2-Clause
"""A share of a host, leased on the host itself: the controller's half. The other is :mod:`harness.dom0.lease_agent`."""

from __future__ import annotations

import contextlib
import getpass
import json
import logging
import os
import platform
import threading
from collections.abc import Callable
from dataclasses import asdict, dataclass
from importlib import resources
from typing import Any

from harness.deadline import Deadline
from harness.errors import DeadlineExpired, InfrastructureError, TransportError
from harness.transport import Stream, Transport

log = logging.getLogger("fxh.hosts")

BASE = "/var/lib/fxh"
BEAT = 10.0
SILENCE = 60.0

# What runs there, each before the one that imports it.
_MODULES = ("cleanup", "lease_table", "lease_agent")
# Some sshds take a command line of 9000 bytes at most (dropbear), so the modules go in by stdin.
_BOOT = """
import json, os, sys, types
n, d = int(sys.argv[1]), b""
while len(d) < n:
    c = os.read(0, n - len(d))
    if not c:
        sys.exit(1)
    d += c
for name, text in json.loads(d.decode()):
    m = sys.modules[name] = types.ModuleType(name)
    exec(compile(text, name, "exec"), m.__dict__)
m.main(json.loads(sys.argv[2]))
"""


@dataclass(frozen=True)
class LeaseRequest:
    """What is to be leased: MiB of memory, vCPUs, MiB of disk. ``what`` is for people: who sees the lease reads it."""

    run: str
    memory: int = 512
    vcpus: int = 1
    disk: int = 64
    what: str = ""
    capacity_memory: int = 0
    """What all leases may take, where the host shall not decide; MiB."""
    capacity_vcpus: int = 0
    silence: float = SILENCE
    nowait: bool = False
    supersede: str = ""
    """An earlier lease of ours whose connection broke: it ends before this begins."""
    base: str = BASE
    poll: float = 0.5
    """Seconds between two looks at the queue by who waits in it; who holds looks ten times less often."""


class HostBusy(InfrastructureError):
    """A host has no room at the moment."""


class HostTooSmall(InfrastructureError):
    """A host would have no room if it were empty."""


def program() -> bytes:
    """The keeper's modules, as names and texts."""
    package = "harness.dom0"
    files = resources.files(package)
    return json.dumps([(f"{package}.{name}", (files / f"{name}.py").read_text()) for name in _MODULES]).encode()


def start(transport: Transport, wish: dict[str, Any]) -> Stream:
    """The keeper at work there."""
    text = program()
    stream = transport.open(["python3", "-S", "-E", "-c", _BOOT, str(len(text)), json.dumps(wish)])
    # Where no Python takes it in, what sh says instead is read from the stream.
    with contextlib.suppress(TransportError):
        stream.write(text)
    return stream


class Lines:
    """JSON lines from a stream; what is none is kept as ``noise``: an error message of sh or Python."""

    def __init__(self, stream: Stream) -> None:
        self._stream, self._rest = stream, b""
        self.noise = ""

    def next(self, timeout: float) -> dict[str, Any] | None:
        """The next message, or None at the end. Raises TimeoutError."""
        deadline = Deadline(timeout)
        while True:
            line, newline, rest = self._rest.partition(b"\n")
            if newline:
                self._rest = rest
                try:
                    found = json.loads(line)
                    if isinstance(found, dict):
                        return found
                except ValueError:
                    pass
                self.noise = (self.noise + line.decode("utf-8", "replace") + "\n")[-2000:]
                continue
            data = self._stream.read(1 << 16, max(0.01, deadline.remaining))
            if not data:
                self.noise += self._rest.decode("utf-8", "replace")
                return None
            self._rest += data


def survey(
    transport: Transport, *, clean: bool = False, deadline: Deadline | None = None, base: str = BASE, **capacity: int
) -> dict[str, Any]:
    """Leases, capacity and orphans of a host; with ``clean`` the orphans are removed. Raises InfrastructureError."""
    deadline = deadline or Deadline(120)
    stream = start(transport, {"mode": "clean" if clean else "survey", "base": base, **capacity})
    lines = Lines(stream)
    try:
        found = lines.next(deadline.remaining)
    except TimeoutError:
        raise deadline.expire(f"the leases of {transport.name}") from None
    finally:
        stream.close()
    if found is None or "leases" not in found:
        raise _broken(transport, lines.noise)
    return found


def _broken(transport: Transport, noise: str) -> InfrastructureError:
    last = noise.strip().splitlines()[-1:] or ["it ended without a word"]
    return InfrastructureError(
        f"{transport.name}: the keeper of leases does not run there: {last[0]}",
        hint="it needs python3 (as pygrub does) and a writable /var/lib/fxh: see fxh doctor",
    )


class Lease:
    """A lease that is held. It ends with :meth:`end`, with this process, and with its connection."""

    def __init__(self, transport: Transport, wish: LeaseRequest) -> None:
        self._transport, self.wish = transport, wish
        self.slot = -1
        self.wanted = False
        """Somebody waits for room on this host."""
        self.lost = ""
        """Why the lease is gone, once it is."""
        self._stream: Stream | None = None
        self._ended = threading.Event()
        self._left: list[str] = []
        self._kept: set[str] = set()
        self._answered = threading.Event()

    def acquire(self, deadline: Deadline, waiting: Callable[[str], None] | None = None) -> Lease:
        """Raises HostBusy (with ``nowait``), HostTooSmall, InfrastructureError, TransportError, DeadlineExpired."""
        who = f"{getpass.getuser()}@{platform.node()} pid {os.getpid()}"
        stream = start(self._transport, {"mode": "hold", "who": who, **asdict(self.wish)})
        lines = Lines(stream)
        try:
            self._granted(lines, stream, deadline, waiting)
        except BaseException:
            stream.close()
            raise
        self._stream = stream
        threading.Thread(target=self._hear, args=(lines,), daemon=True, name="lease-hear").start()
        threading.Thread(target=self._beat, daemon=True, name="lease-beat").start()
        return self

    def _granted(self, lines: Lines, stream: Stream, deadline: Deadline, waiting: Callable[[str], None] | None) -> None:
        name = self._transport.name
        why = "no answer"
        while True:
            try:
                message = lines.next(min(BEAT, max(0.1, deadline.remaining)))
            except TimeoutError:
                if deadline.expired:
                    raise deadline.expire(f"room on {name}", why) from None
                stream.write(b".\n")
                continue
            if message is None:
                raise _broken(self._transport, lines.noise)
            short = " and ".join(message.get("short", ())) or "its turn"
            match message.get("state"):
                case "held":
                    self.slot = int(message["slot"])
                    return
                case "waiting":
                    why = f"{message['ahead']} before us in the queue, short of {short}"
                    log.info("%s: waiting for room: %s", name, why)
                    if waiting is not None:
                        waiting(why)
                case "ending":
                    why = "our earlier lease there is being ended"
                case "busy":
                    raise HostBusy(f"{name} has no room at the moment: short of {short}")
                case "refused":
                    limit = message["capacity"]
                    raise HostTooSmall(
                        f"{name} is too small: {self.wish.memory} MiB, {self.wish.vcpus} vCPUs and {self.wish.disk} MiB of disk are "
                        f"wanted, it has {limit['memory']}, {limit['vcpus']} and {limit['disk']} for us",
                        hint="free some there, or lease less (run.lease_memory in fxh.toml)",
                    )
                case _:
                    raise InfrastructureError(f"{name}: the keeper of leases says {message}")

    def _hear(self, lines: Lines) -> None:
        while True:
            try:
                message = lines.next(3600)
            except TimeoutError:
                continue
            except Exception as exc:  # whatever a transport raises in its last moment
                message, lines.noise = None, str(exc)
            if message is None:
                if not self._ended.is_set():
                    self.lost = (
                        f"the lease on {self._transport.name} is gone: {lines.noise.strip()[-200:] or 'its connection ended'}"
                    )
                self._ended.set()
                self._answered.set()
                return
            if message.get("state") == "wanted":
                self.wanted = True
            elif message.get("state") == "kept":
                self._kept.add(str(message["domain"]))
                self._answered.set()
            elif message.get("state") == "ended":
                self._left = [str(item) for item in message.get("left", ())]
                self._answered.set()

    def _beat(self) -> None:
        while not self._ended.wait(BEAT):
            with contextlib.suppress(TransportError):
                if self._stream is not None:
                    self._stream.write(b".\n")

    def keep(self, domain: str, seconds: float) -> bool:
        """Let ``domain`` outlive this lease for ``seconds``. Returns whether the host has heard it."""
        if self._stream is None or self.lost:
            return False
        self._answered.clear()
        with contextlib.suppress(TransportError):
            self._stream.write(f"keep {domain} {seconds:.0f}\n".encode())
            self._answered.wait(10)
        return domain in self._kept

    def end(self, deadline: Deadline | None = None) -> list[str]:
        """Give it back; the keeper removes all of the run's. Returns what it could not remove. Raises DeadlineExpired."""
        deadline = deadline or Deadline(120)
        if self._stream is None:
            return []
        if not self.lost:
            self._answered.clear()
            with contextlib.suppress(TransportError):
                self._stream.write(b"end\n")
            # Where something is kept the keeper stays, and answers when that goes.
            heard = True if self._kept else self._answered.wait(deadline.remaining)
            self._ended.set()
            if not heard:
                self._stream.close()
                raise DeadlineExpired(f"{self._transport.name}: the keeper did not end within {deadline.seconds:.0f} s")
        self._ended.set()
        self._stream.close()
        self._stream = None
        return self._left
