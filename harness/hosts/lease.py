# SPDX-License-Identifier: BSD-2-Clause
"""Lease a share of a host: the controller's half. :mod:`harness.dom0.lease_agent` is the other."""

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
from typing import Any

from harness.deadline import Deadline
from harness.dom0 import lease_agent
from harness.errors import DeadlineExpired, InfrastructureError, TransportError
from harness.transport import Stream, Transport
from harness.xen import dom0_program

log = logging.getLogger("fxh.hosts")

BASE = "/var/lib/fxh"
"""The directory in dom0 for leases, shared images and the files of runs."""
HEARTBEAT = 10.0
"""Seconds between two signs of life of a holder."""
SILENCE = 60.0
# Seconds until the first answer of an agent. Its own limit for `xl info` is 120 s.
_SILENT = 240.0
_NO_ANSWER = "no answer"
_XL_HINT = "run `xl info` on the host; if it does not end, restart the host"


@dataclass(frozen=True)
class LeaseRequest:
    """The share of a host that a run asks for. Memory and disk are in MiB."""

    run: str
    memory: int = 512
    vcpus: int = 1
    disk: int = 64
    what: str = ""
    """The purpose, which ``fxh hosts`` shows."""
    memory_limit: int = 0
    """MiB that all leases together may use. 0: the free memory of the host."""
    vcpus_limit: int = 0
    """vCPUs that all leases together may use. 0: four for each CPU of the host."""
    silence: float = SILENCE
    """Seconds without a heartbeat after which the agent ends the lease."""
    nowait: bool = False
    """Do not queue: raise HostBusy if the host has no room."""
    supersede: str = ""
    """The run of an earlier lease whose connection broke. It is ended first."""
    base: str = BASE
    poll: float = 0.5
    """Seconds between two checks of the queue while waiting. A holder checks ten times less often."""


class HostBusy(InfrastructureError):
    """The host has no room at the moment."""


class HostTooSmall(InfrastructureError):
    """The host would have no room even without other leases."""


class JsonLines:
    """JSON objects from a stream, one a line. Other lines are kept in ``other``: error messages of a shell or of Python."""

    def __init__(self, stream: Stream) -> None:
        self._stream, self._rest = stream, b""
        self.other = ""

    def next(self, timeout: float) -> dict[str, Any] | None:
        """The next message, or None at the end of the stream. ``timeout`` is in seconds. Raises TimeoutError."""
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
                self.other = (self.other + line.decode("utf-8", "replace") + "\n")[-2000:]
                continue
            data = self._stream.read(1 << 16, max(0.01, deadline.remaining))
            if not data:
                self.other += self._rest.decode("utf-8", "replace")
                return None
            self._rest += data


def survey(
    transport: Transport,
    *,
    clean: bool = False,
    deadline: Deadline | None = None,
    base: str = BASE,
    memory_limit: int = 0,
    vcpus_limit: int = 0,
) -> dict[str, Any]:
    """The leases, the capacity and the orphans of a host: see lease_agent.survey(). With ``clean`` the orphans are removed.

    Raises InfrastructureError, TransportError, DeadlineExpired.
    """
    deadline = deadline or Deadline(120)
    mode = "clean" if clean else "survey"
    request = {"mode": mode, "base": base, "memory_limit": memory_limit, "vcpus_limit": vcpus_limit}
    stream = dom0_program.start(transport, lease_agent, json.dumps(request))
    lines = JsonLines(stream)
    try:
        found = lines.next(deadline.remaining)
    except TimeoutError:
        raise deadline.expire(f"the leases of {transport.name}") from None
    finally:
        stream.close()
    if found is None or "leases" not in found:
        raise _agent_failed(transport, lines.other)
    return found


def _agent_failed(transport: Transport, output: str) -> InfrastructureError:
    last = output.strip().splitlines()[-1:] or ["it ended without a message"]
    return InfrastructureError(
        f"{transport.name}: the lease agent does not run: {last[0]}",
        hint="it needs python3 and a writable /var/lib/fxh in dom0; run fxh doctor HOST",
    )


class Lease:
    """A lease on a host. It ends with :meth:`end`, with this process, and with its connection."""

    def __init__(self, transport: Transport, request: LeaseRequest) -> None:
        self._transport, self.request = transport, request
        self.slot = -1
        """The number of this lease on the host, from 0 to 255; -1 before it is held."""
        self.contended = False
        """Another run waits for room on this host."""
        self.lost = ""
        """The reason why the lease was lost, or ""."""
        self._stream: Stream | None = None
        self._ended = threading.Event()
        self._left: list[str] = []
        self._kept: set[str] = set()
        self._answered = threading.Event()

    def acquire(self, deadline: Deadline, waiting: Callable[[str], None] | None = None) -> Lease:
        """Wait for the lease. ``waiting`` is called with the reason whenever the place in the queue changes.

        Raises HostBusy (with ``nowait``), HostTooSmall, InfrastructureError, TransportError, DeadlineExpired.
        """
        who = f"{getpass.getuser()}@{platform.node()} pid {os.getpid()}"
        request = {"mode": "hold", "who": who, **asdict(self.request)}
        stream = dom0_program.start(self._transport, lease_agent, json.dumps(request))
        lines = JsonLines(stream)
        try:
            self._wait_until_held(lines, stream, deadline, waiting)
        except BaseException:
            stream.close()
            raise
        self._stream = stream
        threading.Thread(target=self._receive, args=(lines,), daemon=True, name="lease-receive").start()
        threading.Thread(target=self._send_heartbeats, daemon=True, name="lease-heartbeat").start()
        return self

    def _wait_until_held(self, lines: JsonLines, stream: Stream, deadline: Deadline, waiting: Callable[[str], None] | None) -> None:
        name = self._transport.name
        why, silent = _NO_ANSWER, Deadline(_SILENT)
        while True:
            try:
                message = lines.next(min(HEARTBEAT, max(0.1, deadline.remaining)))
            except TimeoutError:
                if why == _NO_ANSWER and (deadline.expired or silent.expired):
                    raise TransportError(f"{name}: {silent.describe('the lease agent')}", hint=_XL_HINT) from None
                if deadline.expired:
                    raise deadline.expire(f"room on {name}", why) from None
                stream.write(b".\n")
                continue
            if message is None:
                raise _agent_failed(self._transport, lines.other)
            short = " and ".join(message.get("short", ()))
            match message.get("state"):
                case "held":
                    self.slot = int(message["slot"])
                    return
                case "waiting":
                    why = f"{message['ahead']} ahead in the queue" + (f", short of {short}" if short else "")
                    log.info("%s: waiting for room: %s", name, why)
                    if waiting is not None:
                        waiting(why)
                case "ending":
                    why = "the earlier lease of this worker is ending"
                case "busy":
                    reason = f"short of {short}" if short else f"{message['ahead']} ahead in the queue"
                    raise HostBusy(f"{name} has no room at the moment: {reason}")
                case "silent":
                    raise TransportError(f"{name}: {message.get('why', '')}", hint=_XL_HINT)
                case "refused":
                    raise self._too_small(message["capacity"])
                case _:
                    raise InfrastructureError(f"{name}: unexpected message of the lease agent: {message}")

    def _too_small(self, capacity: dict[str, int]) -> HostTooSmall:
        return HostTooSmall(
            f"{self._transport.name} is too small: the lease needs {self.request.memory} MiB, {self.request.vcpus} vCPUs and "
            f"{self.request.disk} MiB of disk; the host has {capacity['memory']}, {capacity['vcpus']} and {capacity['disk']}",
            hint="free some on the host, or set a smaller run.lease_memory in fxh.toml",
        )

    def _receive(self, lines: JsonLines) -> None:
        while True:
            try:
                message = lines.next(3600)
            except TimeoutError:
                continue
            except Exception as exc:  # a transport that breaks may raise anything
                message, lines.other = None, str(exc)
            if message is None:
                if not self._ended.is_set():
                    reason = lines.other.strip()[-200:] or "its connection ended"
                    self.lost = f"the lease on {self._transport.name} is lost: {reason}"
                self._ended.set()
                self._answered.set()
                return
            if message.get("state") == "contended":
                self.contended = True
            elif message.get("state") == "kept":
                self._kept.add(str(message["domain"]))
                self._answered.set()
            elif message.get("state") == "ended":
                self._left = [str(item) for item in message.get("left", ())]
                self._answered.set()

    def _send_heartbeats(self) -> None:
        while not self._ended.wait(HEARTBEAT):
            with contextlib.suppress(TransportError):
                if self._stream is not None:
                    self._stream.write(b".\n")

    def keep_domain(self, domain: str, seconds: float) -> bool:
        """Let ``domain`` outlive this lease by ``seconds``. Returns whether the agent confirmed it within 10 s."""
        if self._stream is None or self.lost:
            return False
        self._answered.clear()
        with contextlib.suppress(TransportError):
            self._stream.write(f"keep {domain} {seconds:.0f}\n".encode())
            self._answered.wait(10)
        return domain in self._kept

    def end(self, deadline: Deadline | None = None) -> list[str]:
        """End the lease: the agent removes the resources of the run. Returns those that it could not remove.

        Raises DeadlineExpired.
        """
        deadline = deadline or Deadline(120)
        if self._stream is None:
            return []
        if not self.lost:
            self._answered.clear()
            with contextlib.suppress(TransportError):
                self._stream.write(b"end\n")
            # An agent that keeps domains answers only after their time has passed.
            answered = True if self._kept else self._answered.wait(deadline.remaining)
            self._ended.set()
            if not answered:
                self._stream.close()
                raise DeadlineExpired(f"{self._transport.name}: the lease agent did not end within {deadline.seconds:.0f} s")
        self._ended.set()
        self._stream.close()
        self._stream = None
        return self._left
