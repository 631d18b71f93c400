"""A guest's network as a case uses it: an address on both ends, data both ways with its digests, captures in dom0."""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import random
import re
import secrets
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from harness.deadline import Deadline, NotYet
from harness.errors import InfrastructureError
from harness.guests import admin
from harness.guests.guest import Guest
from harness.hosts.host import XenHost
from harness.oracles import frames
from harness.oracles.frames import Frame
from harness.transport import Stream
from harness.xen import events

# As an argument: a file would have to be there for every link, also of a restored guest, and to go with the last.
_PEER = (Path(__file__).parent.parent / "xen" / "netpeer.py").read_text()
# RFC 2544's own range: nobody's network.
_NETWORK = "198.18"
# Linux's netback calls its handler by hand (drivers/net/xen-netback/xenbus.c, xenvif_write_io_ring()).
_KICK = """
[ -d /sys/kernel/debug/xen-netback ] || mount -t debugfs none /sys/kernel/debug
for ring in /sys/kernel/debug/xen-netback/"$1"/io_ring_q*; do echo kick > "$ring"; done
"""
# What tcpdump says on SIGUSR1.
_COUNTS = rb"(\d+) packets captured, (\d+) packets received by filter, (\d+) packets dropped by kernel"
log = logging.getLogger("fxh.guests")


@dataclass(frozen=True)
class Transfer:
    """One connection. ``error`` is empty where all arrived; the digests are of what was sent and of what arrived."""

    bytes: int
    sent: str
    arrived: str
    seconds: float
    error: str = ""

    @property
    def complaint(self) -> str:
        if self.error:
            return f"{self.error} after {self.bytes} bytes and {self.seconds:.1f} s"
        return "" if self.sent == self.arrived else f"{self.bytes} bytes arrived with digest {self.arrived}, {self.sent} were sent"


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


class Peer:
    """A program at work in dom0 (or in a network namespace of it)."""

    def __init__(self, host: XenHost, words: list[str], namespace: str = "") -> None:
        inside = ["ip", "netns", "exec", namespace] if namespace else []
        self._said = Listener(host.transport.open([*inside, "python3", "-c", _PEER, *words]), "the network peer")
        if words[0] != "push":
            self._said.until(b"listening")

    def result(self, seconds: float) -> dict[str, object]:
        """What it says at its end. Raises InfrastructureError when it says nothing."""
        last = self._said.until(rb"{[^}]*}", seconds)
        self._said.stream.close()
        found: dict[str, object] = json.loads(last[0])
        return found


class Link:
    """Between dom0 and the guest's vif ``index``, on the host's bridge or, with ``namespace``, in one of its own."""

    def __init__(self, guest: Guest, index: int = 0, namespace: str = "", interface: str = "") -> None:
        """``interface`` is its name in the guest, where that is known already."""
        self.guest, self.host, self.namespace = guest, guest.host, namespace
        self.vif = f"vif{guest.domid}.{index}"
        net = index + 77
        self.here, self.there = f"{_NETWORK}.{net}.1", f"{_NETWORK}.{net}.2"
        self._admin = admin.of(guest.profile)
        self._port = 5001
        mac = guest.config.vifs[index].mac
        self.interface = interface or next(i.name for i in guest.profile.interfaces(guest.sh) if i.mac == mac)

    # -- both ends ----------------------------------------------------------------------------------------------------

    def up(self) -> Link:
        """Addresses on both ends. dom0's goes with :meth:`down`, or with the lab."""
        device = self.host.bridge
        if self.namespace:
            device = self.vif
            script = (
                'ip netns add "$1"; ip link set "$2" nomaster; ip link set "$2" netns "$1"; ip netns exec "$1" ip link set "$2" up'
            )
            self.host.transport.run(["sh", "-c", script, "sh", self.namespace, self.vif])
        self.dom0("ip", "addr", "add", f"{self.here}/24", "dev", device, check=False)
        self._admin.address(self.guest.sh, self.interface, f"{self.there}/24")
        return self

    def down(self) -> None:
        if self.namespace:
            self.host.transport.run(["ip", "netns", "del", self.namespace], check=False)
        else:
            self.dom0("ip", "addr", "del", f"{self.here}/24", "dev", self.host.bridge, check=False)

    def dom0(self, *argv: str, check: bool = True) -> str:
        """A command in dom0, on this link's side."""
        inside = ["ip", "netns", "exec", self.namespace] if self.namespace else []
        return self.host.transport.run([*inside, *argv], check=check).text

    def wait_up(self, seconds: float = 40) -> bool:
        """Whether the guest reaches dom0 within ``seconds``.

        Where it is dom0's backend that does not hear the guest, it is woken and the guest gets as long again: that is no matter of
        the guest. Raises InfrastructureError when dom0 stays deaf.
        """
        again = f"ping -c 1 {self._patience(1)} {self.here} >/dev/null 2>&1 && echo up && break; [ $(date +%s) -ge $end ] && break"
        script = f"end=$(($(date +%s) + {int(seconds)})); while :; do {again}; done"
        for _ in range(2):
            if "up" in self.guest.run(script, seconds + 30, check=False).text:
                return True
            if not (unheard := events.deaf(self.host.transport, self.guest.domid)):
                return False
            ports = ", ".join(str(channel.port) for channel in unheard)
            said = f"dom0 does not hear {self.guest.name}: its event channel {ports} is pending and masked, its handler is not done"
            log.warning("%s; %s is woken", said, self.vif)
            self.host.transport.run(["sh", "-c", _KICK, "sh", self.vif], check=False)
        raise InfrastructureError(said, mend="a defect of dom0's kernel (harness/xen/events.py), not of the guest: run it again")

    # -- data ---------------------------------------------------------------------------------------------------------

    def upload(self, size: int, seconds: float = 60) -> Transfer:
        """``size`` bytes from the guest to dom0."""
        port = self._next()
        self.guest.sh(
            f"[ -f /tmp/fxh-{size} ] || dd if=/dev/urandom of=/tmp/fxh-{size} bs=1024 count={size // 1024} 2>/dev/null", 120
        )
        peer = Peer(self.host, ["recv", self.here, str(port), str(size)], self.namespace)
        script = f"fxs < /tmp/fxh-{size}; {self.nc(seconds)} {self.here} {port} < /tmp/fxh-{size} > /dev/null; true"
        sent = self.guest.sh(script, seconds + 30).split()[0]
        done = peer.result(seconds + 40)
        return Transfer(int(str(done["bytes"])), sent, str(done["md5"]), float(str(done["seconds"])), str(done["error"]))

    def download(self, size: int, seconds: float = 60, *, chunk: int = 1 << 16, lasting: float = 0) -> Transfer:
        """``size`` bytes from dom0 to the guest, in writes of ``chunk`` bytes with TCP_NODELAY.

        They are sent again and again until ``lasting`` seconds have passed, however fast the guest is.
        """
        port, seed = self._next(), size
        words = ["send", self.here, str(port), str(size), str(seed), str(chunk), str(lasting)]
        peer = Peer(self.host, words, self.namespace)
        arrived = self.guest.sh(f"{self.nc(seconds)} {self.here} {port} < /dev/null | fxs", seconds + 30).split()[0]
        done = peer.result(seconds + 40)
        moved = int(str(done["bytes"]))
        payload, digest = random.Random(seed).randbytes(size), hashlib.md5(usedforsecurity=False)
        for _ in range(max(1, moved // size)):
            digest.update(payload)
        return Transfer(moved, digest.hexdigest(), arrived, float(str(done["seconds"])), str(done["error"]))

    def forwarded(self, far: Link, size: int, *, to: str = "") -> Transfer:
        """``size`` bytes from dom0's side of this link to its side of ``far``: the guest in the middle has to route.

        ``to`` is the address that is asked for, where the guest shall send on what comes to another than the far side's.
        """
        port = self._next()
        peer = Peer(self.host, ["recv", far.here, str(port), str(size)], far.namespace)
        source = Peer(self.host, ["push", to or far.here, str(port), str(size), "7", "65536"], self.namespace)
        done, sent = peer.result(60), source.result(60)
        payload = hashlib.md5(random.Random(7).randbytes(size), usedforsecurity=False).hexdigest()
        error = str(done["error"]) or ("" if done["bytes"] == size else f"the stream ended early ({sent['error']})")
        return Transfer(int(str(done["bytes"])), payload, str(done["md5"]), float(str(done["seconds"])), error)

    def ping(self, size: int) -> bool:
        """An echo of ``size`` bytes of data, in fragments where it must be; the content is compared by ping."""
        done = self.guest.run(f"ping -c 1 {self._patience(5)} -s {size} {self.here}", check=False)
        return done.status == 0 and "wrong data" not in done.text

    def _patience(self, seconds: int) -> str:
        # FreeBSD's -W counts milliseconds; its -t is an alarm that can end the shell, too.
        return f"-W {seconds * 1000}" if self.guest.profile.os == "freebsd" else f"-W {seconds}"

    def nc(self, seconds: float) -> str:
        """The guest's command for one connection, up to an address and a port; it ends with its input, or after ``seconds``."""
        # busybox's has no half-close; the peer knows how many bytes there are, and closes.
        return f"timeout {int(seconds)} nc" + (" -N" if self.guest.profile.os == "freebsd" else "")

    def _next(self) -> int:
        self._port += 1
        return self._port

    # -- looking ------------------------------------------------------------------------------------------------------

    @contextlib.contextmanager
    def capture(self, target: Path, *, whole: bool = False) -> Iterator[list[Frame]]:
        """What passes dom0's end of the vif while inside; kept at ``target``; the list is filled at the end.

        ``whole`` frames are needed for checksums; headers do for sizes.
        """
        remote = f"/run/fxh-{secrets.token_hex(4)}.pcap"
        # Immediately: else what the kernel collected in the last second is never read by a tcpdump that is told to end. Its ring then
        # has room for as many frames as are as long as the longest, so it has to be larger than the 2 MiB that are the default.
        ring = ["--immediate-mode", "-B", "32768", "-s", "65549" if whole else "96"]
        words = ["tcpdump", "-i", self.vif, "-U", "-Z", "root", *ring, "-w", remote, "net", f"{_NETWORK}.0.0/16"]
        inside = ["ip", "netns", "exec", self.namespace] if self.namespace else []
        stream = self.host.transport.open(["sh", "-c", 'echo $$; exec "$@"', "sh", *inside, *words])
        said = Listener(stream, "tcpdump")
        pid = said.until(rb"(\d+)\n.*listening on")[1].decode()

        def unwritten() -> int:
            """Frames that the kernel counted and tcpdump has not written."""
            self.host.transport.run(["kill", "-USR1", pid])
            captured, received, dropped = (int(count) for count in said.until(_COUNTS).groups())
            if dropped:
                raise InfrastructureError(f"dom0's kernel dropped {dropped} of {received} frames before tcpdump read them")
            return received - captured

        def all_written() -> None:
            if (left := unwritten()) > before:
                raise NotYet(f"tcpdump has {left - before} frames to write")

        found: list[Frame] = []
        try:
            # Frames that came before its filter was in place are counted, and never written.
            before = unwritten()
            yield found
            Deadline(30).wait("tcpdump to write all frames", all_written)
        finally:
            script = 'kill -INT "$1"; while [ -d "/proc/$1" ]; do sleep 0.05; done'
            self.host.transport.run(["sh", "-c", script, "sh", pid], Deadline(30))
            self.host.transport.get(remote, target)
            self.host.transport.run(["rm", "-f", remote])
            stream.close()
            found += frames.read(target)

    def checksum_errors(self) -> int:
        """TCP segments that dom0 threw away for their checksum, since it booted (InCsumErrors in /proc/net/snmp)."""
        lines = [line.split() for line in self.dom0("cat", "/proc/net/snmp").splitlines() if line.startswith("Tcp:")]
        return int(lines[1][lines[0].index("InCsumErrors")])
