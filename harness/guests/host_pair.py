# SPDX-License-Identifier: BSD-2-Clause
"""Two hosts between which a guest migrates. This program relays what they send each other, so they need no network in common."""

from __future__ import annotations

import contextlib
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path

from harness import paths
from harness.dom0 import port_command, tap_wire
from harness.errors import CannotRun, GuestDied, TransportError
from harness.guests import suspend, tap
from harness.guests.guest import Guest
from harness.guests.peer import Listener
from harness.guests.source import DiskImage
from harness.hosts.host import XenHost
from harness.safetext import plain
from harness.sparse import copy_sparse
from harness.transport import Stream, Transport
from harness.xen import dom0_program
from harness.xen.config import Disk
from harness.xen.toolstack import RECEIVER

# Creates the bridge "$1" with the address "$2" and connects the TAP device "$3" to it. The bridges of the hosts themselves must stay
# apart: labs have the same addresses there. A bridge may be left from a run that was killed.
_CONNECT = """
ip link del "$1" 2>/dev/null
ip link add "$1" address "$2" type bridge forward_delay 0 stp_state 0 && ip link set "$1" up && ip link set "$3" master "$1" up
"""
# Locally administered addresses of the bridges.
_MACS = ("02:66:78:68:00:01", "02:66:78:68:00:02")
# Seconds after which a read looks again whether the stream is closed.
_LOOK = 30.0
# The shell command of `xl migrate` for the stream from "{0}" and to "{1}", two named pipes in dom0.
_THROUGH_PIPES = "cat < {0} & exec cat > {1}"


class _Relay(threading.Thread):
    """Copies bytes from one stream to another until one of them ends, and then closes the target."""

    def __init__(self, source: Stream, target: Stream, first: bytes = b"") -> None:
        super().__init__(name="fxh-relay", daemon=True)
        self._source, self._target, self._first = source, target, first
        self.start()

    def run(self) -> None:
        data = self._first
        while True:
            try:
                if data:
                    self._target.write(data)
                data = self._source.read(1 << 16, _LOOK)
            except TimeoutError:
                data = b""
                continue
            except TransportError:
                break
            if not data:
                break
        self._target.close()


class HostPair:
    """``first`` and ``second`` are hosts with the same Xen. Each gets a bridge, and a wire connects both bridges."""

    def __init__(self, first: XenHost, second: XenHost) -> None:
        self.first, self.second = first, second
        self.bridge = f"fxhpair{first.slot}"
        """The name of both bridges: a guest finds its bridge by name on the host that it moves to."""
        self._streams: list[Stream] = []
        self._disks = 0

    def __enter__(self) -> HostPair:
        """Create the bridges and the wire, and set the clocks of labs alike. Raises CannotRun if a dom0 cannot create TAP devices."""
        try:
            self._connect()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        """Remove the wire and the bridges."""
        for stream in self._streams:
            stream.close()
        for host in (self.first, self.second):
            with contextlib.suppress(TransportError):
                host.transport.run(["ip", "link", "del", self.bridge], check=False)

    def _connect(self) -> None:
        ends = []
        for host, mac in zip((self.first, self.second), _MACS, strict=True):
            device = f"fxhwire{host.slot}"
            ends.append(tap.start(host.transport, tap_wire, device))
            self._streams.append(ends[-1].stream)
            host.transport.run(["sh", "-c", _CONNECT, "sh", self.bridge, mac, device])
        if self.second.checkpoints is not None:
            # A lab's clock stands still while it is saved. A guest does not set its clock back when it comes to a host that is behind
            # (Linux kernel/time/timekeeping.c, timekeeping_resume()). dom0 passes its time on to Xen (arch/x86/xen/time.c,
            # xen_pvclock_gtod_notify()).
            now = self.first.transport.run(["date", "+%s.%N"]).text.strip()
            self.second.transport.run(["date", "-s", f"@{now}"])
        one, other = ends
        _Relay(one.stream, other.stream, one.rest())
        _Relay(other.stream, one.stream, other.rest())

    def disk(self, image: DiskImage) -> Disk:
        """Give both hosts a copy of a guest's disk as one disk with one name. Raises CannotRun."""
        if image.format != "raw":
            raise CannotRun(f"needs raw disks instead of {image.format}", hint=f"qemu-img convert -O raw {image.path} FILE")
        self._disks += 1
        target = f"/dev/{self.bridge}-{self._disks}"
        # Both labs keep the file open, so it needs no name after that.
        with tempfile.TemporaryDirectory(dir=paths.store()) as work:
            copy = Path(work) / "disk"
            copy_sparse(image.path, copy)
            for host in (self.first, self.second):
                host.transport.run(["ln", "-sfn", host.shared_disk(copy), target])
        return Disk(target, image.vdev, readonly=image.readonly)

    def move(self, guest: Guest) -> float:
        """Migrate the guest live to the other host; see :func:`harness.guests.suspend.migrated`."""
        target = self.second if guest.host is self.first else self.first
        messages = f"{target.make_directory()}/{guest.name}.receive"
        with self._stream(guest, target, messages) as receiver:
            try:
                return suspend.migrated(guest, receiver, target)
            except GuestDied as exc:
                said = target.transport.run(["tail", "-n", "5", messages], check=False).text
                raise GuestDied(exc.death, f"{RECEIVER}: {plain(said).strip() or 'no message'}") from exc

    @contextlib.contextmanager
    def _stream(self, guest: Guest, target: XenHost, messages: str) -> Iterator[str]:
        """A shell command in the dom0 of the guest's host, whose standard streams are those of a receiver on ``target``.

        The receiver's messages go to the file ``messages`` there.
        """
        source = guest.host.transport
        pipes = [f"{guest.host.make_directory()}/{guest.name}.{way}" for way in ("in", "out")]
        source.run(["sh", "-c", 'rm -f "$@" && mkfifo -m 600 "$@"', "sh", *pipes])
        with contextlib.ExitStack() as ends:
            ends.callback(source.run, ["rm", "-f", *pipes])
            sender = ends.enter_context(_command(source, "sh", "-c", 'cat "$2" & exec cat > "$1"', "sh", *pipes))
            receiver = ends.enter_context(_command(target.transport, "sh", "-c", f'exec {RECEIVER} 2> "$1"', "sh", messages))
            _Relay(sender, receiver)
            _Relay(receiver, sender)
            yield _THROUGH_PIPES.format(*pipes)


@contextlib.contextmanager
def _command(transport: Transport, *argv: str) -> Iterator[Stream]:
    """The standard streams of a command in dom0. They pass no ssh connection to a lab."""
    started = dom0_program.start(transport, port_command, transport.near, *argv)
    try:
        port = int(Listener(started, argv[0]).until(rb"(\d+)\n")[1])
        stream = transport.connect(port)
        try:
            yield stream
        finally:
            stream.close()
    finally:
        started.close()
