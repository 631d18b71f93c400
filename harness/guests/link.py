# SPDX-License-Identifier: BSD-2-Clause
"""The network between a guest and dom0: addresses on both ends, transfers with digests both ways, captures in dom0."""

from __future__ import annotations

import contextlib
import hashlib
import logging
import random
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from harness.deadline import Deadline
from harness.dom0 import netpeer
from harness.errors import InfrastructureError
from harness.guests import capture
from harness.guests.guest import Guest
from harness.guests.link_explainer import SECONDS, LinkExplainer
from harness.guests.os.linux import snmp_counter
from harness.guests.peer import Moved, Peer, inside
from harness.oracles import frames
from harness.oracles.frames import Frame
from harness.safetext import plain
from harness.xen import events

# The net of the run with the slot 0, and how many nets there are below those of VLANs (harness.guests.vlan). Runs that share a host
# share its bridge, so each slot has two separate nets. An address of two guests would reach only one of them.
NET, NETS = 77, 98
# Seed of the data that dom0 sends.
SEED = 7
# Linux's netback calls its interrupt handler on a write to io_ring_q* (drivers/net/xen-netback/xenbus.c, xenvif_write_io_ring()).
_KICK = f"""
{events.NETBACK}
for ring in /sys/kernel/debug/xen-netback/"$1"/io_ring_q*; do echo kick > "$ring"; done
"""
# Netback gives up a vif whose guest breaks the protocol, and masks its channels (drivers/net/xen-netback/netback.c,
# xenvif_fatal_tx_err(); interface.c, xenvif_down()).
_GIVEN_UP = 'dmesg | grep -qF "$1: fatal error; disabling device"'
# Moves the vif "$2" into the network namespace "$1", which is created; does nothing if the vif is in it.
_INSIDE = """
ip netns exec "$1" ip link show "$2" > /dev/null 2>&1 && exit
ip netns add "$1"; ip link set "$2" nomaster; ip link set "$2" netns "$1"; ip netns exec "$1" ip link set "$2" up
"""
# Waits, for half a minute, until dom0 has sent "$2" bytes over the vif "$1".
BUSY = """
sent() { read -r bytes < /sys/class/net/"$1"/statistics/tx_bytes; }
seconds() { read -r now idle < /proc/uptime; now=${now%.*}; }
sent "$1"; first=$bytes
seconds; end=$((now + 30))
while [ $((bytes - first)) -lt "$2" ] && [ "$now" -lt "$end" ]; do sleep 0.1; sent "$1"; seconds; done
"""
log = logging.getLogger("fxh.guests")


@dataclass(frozen=True)
class Family:
    """A version of IP: a reserved range, the form of an address in it, and ``mss``, the bytes of a TCP segment at MTU 1500.

    ``at_once`` are the words of ip-address(8) with which dom0 uses an address at once.
    """

    name: str
    range: str
    address: str
    prefix: int
    mss: int
    at_once: tuple[str, ...] = ()


# The ranges are reserved for benchmarks: RFC 2544 and RFC 5180.
IPV4 = Family("ipv4", "198.18.0.0/16", "198.18.{net}.{station}", 24, 1460)
IPV6 = Family("ipv6", "2001:2::/48", "2001:2:0:{net}::{station}", 64, 1440, ("nodad",))


@dataclass(frozen=True)
class Transfer:
    """One connection, or one series of datagrams. ``sent`` and ``arrived`` are digests; ``error`` is empty if it ended as expected."""

    bytes: int
    sent: str
    arrived: str
    seconds: float
    error: str = ""

    @property
    def complaint(self) -> str:
        """The reason why the transfer failed, or ""."""
        if self.error:
            return f"{self.error} after {self.bytes} bytes and {self.seconds:.1f} s"
        return "" if self.sent == self.arrived else f"{self.bytes} bytes arrived with digest {self.arrived}, {self.sent} were sent"


class Link:
    """The link between dom0 and the guest's vif ``index``: on the host's bridge, or in the network namespace ``namespace``.

    ``here`` is dom0's address, ``there`` the guest's.
    """

    def __init__(
        self, guest: Guest, index: int = 0, namespace: str = "", interface: str = "", *, station: int = 2, family: Family = IPV4
    ) -> None:
        """``interface`` is its name in the guest, if known; ``station`` is the last number of the guest's address."""
        self.guest, self.host, self.index, self.namespace, self.family = guest, guest.host, index, namespace, family
        self.vif = f"vif{guest.domid}.{index}"
        self.net = (NET + 2 * guest.host.slot + index) % NETS
        self.here, self.there = (family.address.format(net=self.net, station=number) for number in (1, station))
        self.device = self.vif if namespace else guest.config.vifs[index].bridge
        """The interface of dom0's end, which has the address :attr:`here`."""
        self.expression = f"net {family.range}"
        """Matches the link's frames (pcap-filter(7))."""
        self._port = 5001
        mac = guest.config.vifs[index].mac
        self.interface = interface or next(i.name for i in guest.os.interfaces(guest.sh) if i.mac == mac)
        self._explainer = LinkExplainer(self)
        guest.explainers.append(self._explainer)
        if not interface:
            self._explainer.begin()

    # -- both ends ----------------------------------------------------------------------------------------------------

    def up(self) -> Link:
        """Set the addresses of both ends. :meth:`down` removes dom0's."""
        if self.namespace:
            self.host.transport.run(["sh", "-c", _INSIDE, "sh", self.namespace, self.vif])
        # `replace`: the address may be left from an earlier guest on the same bridge.
        self.dom0("ip", "addr", "replace", self._cidr(self.here), "dev", self.device, *self.family.at_once)
        self.guest.os.address(self.guest.sh, self.interface, self._cidr(self.there))
        return self

    def down(self) -> None:
        """Remove dom0's address, or the network namespace."""
        if self.namespace:
            self.host.transport.run(["ip", "netns", "del", self.namespace], check=False)
        else:
            self.dom0("ip", "addr", "del", self._cidr(self.here), "dev", self.device, check=False)

    def _cidr(self, address: str) -> str:
        return f"{address}/{self.family.prefix}"

    def dom0(self, *argv: str, check: bool = True) -> str:
        """Run a command in dom0, in this link's network namespace, and return its output."""
        return self.host.transport.run([*inside(self.namespace), *argv], check=check).text

    @property
    def present_vif(self) -> str:
        """The vif of the guest's present domain. It differs from :attr:`vif` after a restore."""
        return f"vif{self.guest.domid}.{self.index}"

    @property
    def end(self) -> str:
        """The interface, in :attr:`namespace`, at which dom0's end of the link is observed."""
        return self.present_vif

    def wait_up(self, seconds: float = 40) -> bool:
        """Whether the guest reaches dom0 within ``seconds``.

        If dom0's backend misses the guest's events, kick the backend and give the guest the same time once more. Raises
        InfrastructureError if the backend misses them again. A guest may not reach dom0 for another reason, such as a vif that
        netback gave up. Then its network state is kept with the console log, and the finding gets the cause.
        """
        attempt = f"{self._echo()} >/dev/null 2>&1 && echo up && break; [ $(date +%s) -ge $end ] && break"
        script = f"end=$(($(date +%s) + {int(seconds)})); while :; do {attempt}; done"
        for _ in range(2):
            if "up" in self.guest.run(script, seconds + 30, check=False).text:
                return True
            if self._given_up() or not (pending := events.deaf(self.host.transport, self.guest.domid)):
                show = f"{{ {self._echo()}; {self.guest.os.network(self.interface)}; }} 2>&1"
                path = self.guest.directory / f"{self.guest.name}.{self.interface}.txt"
                path.write_text(self.guest.run(show, 60, check=False).text)
                self._explain()
                return False
            ports = ", ".join(str(channel.port) for channel in pending)
            message = f"dom0 misses the events of {self.guest.name}: its event channel {ports} is pending and masked"
            log.warning("%s; kicking %s", message, self.vif)
            self.host.transport.run(["sh", "-c", _KICK, "sh", self.vif], check=False)
        raise InfrastructureError(message, hint="a defect of dom0's kernel (harness/xen/events.py), not of the guest: run it again")

    def _given_up(self) -> bool:
        """Whether netback has disabled the vif because of what the guest sent. Its masked channels are no defect of dom0 then."""
        return self.host.transport.run(["sh", "-c", _GIVEN_UP, "sh", self.vif], check=False).status == 0

    def _echo(self) -> str:
        return self.guest.os.ping_command(self.here, 1)

    def wait_busy(self, size: int) -> bool:
        """Whether dom0 sends ``size`` more bytes to the guest within 30 s."""
        script = BUSY + '[ $((bytes - first)) -ge "$2" ]'
        return self.host.transport.run(["sh", "-c", script, "sh", self.vif, str(size)], Deadline(90), check=False).status == 0

    # -- data ---------------------------------------------------------------------------------------------------------

    def upload(self, size: int, seconds: float = 60) -> Transfer:
        """Send ``size`` bytes from the guest to dom0."""
        port, data = self.next_port(), self._data(size)
        peer = self.peer("recv", port, size)
        script = f"fxh_digest < {data}; {self.nc(seconds)} {self.here} {port} < {data} > /dev/null; true"
        sent = self.guest.sh(script, seconds + 30).split()[0]
        done = peer.result(seconds + 40)
        return self.checked(Transfer(done.bytes, sent, done.md5, done.seconds, done.error))

    def download(self, size: int, seconds: float = 60, *, chunk: int = 1 << 16, lasting: float = 0) -> Transfer:
        """Send ``size`` bytes from dom0 to the guest, in writes of ``chunk`` bytes with TCP_NODELAY.

        The same data is sent repeatedly until ``lasting`` seconds have passed.
        """
        port = self.next_port()
        peer = self.source(port, size, chunk=chunk, lasting=lasting)
        arrived = self.guest.sh(f"{self.nc(seconds)} {self.here} {port} < /dev/null | fxh_digest", seconds + 30).split()[0]
        done = peer.result(seconds + 40)
        return self.checked(Transfer(done.bytes, digest_of(size, done.bytes // size), arrived, done.seconds, done.error))

    def source(self, port: int, size: int, *, chunk: int = 1 << 16, lasting: float = 0, patience: float = netpeer.PATIENCE) -> Peer:
        """Start dom0's end of a :meth:`download`: it listens at ``port``, and ends after ``patience`` seconds without data."""
        return self.peer("send", port, size, SEED, chunk, lasting, patience)

    def peer(self, verb: str, *words: object, address: str = "") -> Peer:
        """Start dom0's end of a transfer with a verb of :mod:`harness.dom0.netpeer`, by default with this end's address."""
        peer = Peer(self.host, [verb, address or self.here, *map(str, words)], self.namespace)
        self._explainer.took(peer.counted)
        return peer

    def to(self, other: Link, size: int, seconds: float = 60) -> Transfer:
        """Send ``size`` bytes from this guest to the other link's guest, over the bridge."""
        port, data = self.next_port(), self._data(size)
        # A listening nc also ends with its input, so its input stays open and empty.
        listen = f"timeout {int(seconds)} nc -l {other.guest.os.listen_words(other.there, port)}"
        receive = f"sleep {int(seconds)} | {listen} | head -c {size} | fxh_digest > /tmp/fxh-came"
        ready = f"netstat -an | grep LISTEN | grep -q '[.:]{port} ' && break; sleep 0.1"
        other.guest.sh(f"rm -f /tmp/fxh-came; ( {receive} ) > /dev/null 2>&1 & for i in $(seq 100); do {ready}; done")
        begun = time.monotonic()
        sent = self.guest.sh(f"fxh_digest < {data}; {self.nc(seconds)} {other.there} {port} < {data} > /dev/null 2>&1 &").split()[0]
        arrived = other.came(seconds)
        error = "" if arrived else f"{other.there} did not get {size} bytes from {self.there}"
        return self.checked(Transfer(size, sent, arrived, round(time.monotonic() - begun, 3), error))

    def receive(self, port: int, seconds: float) -> None:
        """Start a program in the guest that connects to ``port`` of dom0 and digests what arrives, for at most ``seconds``."""
        receive = f"{self.nc(seconds)} {self.here} {port} < /dev/null 2> /tmp/fxh-said | fxh_digest > /tmp/fxh-came"
        self.guest.sh(f"rm -f /tmp/fxh-came; ( {receive} ) > /dev/null 2>&1 &")

    def send(self, port: int, path: str, seconds: float) -> None:
        """Start a program in the guest that sends the file ``path`` to ``port`` of dom0 within ``seconds``, then digests the file."""
        send = f"{self.nc(seconds)} {self.here} {port} < {path} > /dev/null 2> /tmp/fxh-said; fxh_digest < {path} > /tmp/fxh-came"
        self.guest.sh(f"rm -f /tmp/fxh-came; ( {send} ) > /dev/null 2>&1 &")

    def said(self) -> str:
        """The last words of the program that :meth:`receive` or :meth:`send` started, as the end of a sentence; "" if it has none."""
        said = plain(self.guest.sh("head -c 500 /tmp/fxh-said")).strip()
        return f", and its program ended with {said!r}" if said else ""

    def unsent(self, came: Moved, sent: str) -> str:
        """The defect of a stream from the guest, whose file has the digest ``sent``, with :meth:`said`; "" if all arrived."""
        if not came.error and sent == came.md5:
            return ""
        return (
            f"dom0 received {came.bytes} bytes ({came.error or 'then the stream ended'}) with digest {came.md5}; "
            f"the guest sent data with digest {sent!r}{self.said()}"
        )

    def incomplete(self, sent: Moved, came: str) -> str:
        """The defect of a stream that :meth:`receive` digested as ``came``, with that program's last words; "" if all arrived."""
        if not sent.error and came == sent.md5:
            return ""
        return (
            f"dom0 sent {sent.bytes} bytes ({sent.error or 'all'}) with digest {sent.md5}; "
            f"the guest received data with digest {came!r}{self.said()}"
        )

    def came(self, seconds: float) -> str:
        """The digest that a transfer in the background writes to /tmp/fxh-came at its end; "" if none does in ``seconds``."""
        poll = "[ -s /tmp/fxh-came ] && break; sleep 0.2"
        script = f"for i in $(seq {int(seconds * 5)}); do {poll}; done; cat /tmp/fxh-came"
        return "".join(self.guest.sh(script, 2 * seconds + 60).split()[:1])

    def forwarded(self, far: Link, size: int, *, to: str = "") -> Transfer:
        """Send ``size`` bytes from dom0's end of this link to dom0's end of ``far``, through the guest as a router.

        ``to`` is the destination address, if the guest redirects another address than that of the far end.
        """
        port = self.next_port()
        peer = far.peer("recv", port, size)
        source = self.peer("connect", port, size, SEED, 65536, address=to or far.here)
        done, sent = peer.result(60), source.result(60)
        error = done.error or ("" if done.bytes == size else f"the stream ended early ({sent.error})")
        return self.checked(Transfer(done.bytes, digest_of(size), done.md5, done.seconds, error))

    def ping(self, size: int) -> bool:
        """Whether an echo of ``size`` bytes of data comes back; ping compares its content."""
        done = self.guest.run(self.guest.os.ping_command(self.here, 5, size), check=False)
        return done.status == 0 and "wrong data" not in done.text

    def nc(self, seconds: float) -> str:
        """The guest's command for one connection to an address and a port, which follow; it ends with its input or after ``seconds``."""
        return self.guest.os.nc_command(seconds)

    def _data(self, size: int) -> str:
        """The path of a file in the guest with ``size`` random bytes, which is created once."""
        path = f"/tmp/fxh-{size}"
        self.guest.sh(f"[ -f {path} ] || dd if=/dev/urandom of={path} bs=1024 count={size // 1024} 2>/dev/null", 120)
        return path

    def checked(self, transfer: Transfer) -> Transfer:
        """Return the transfer. After the first failed one, find out why at once, for the finding of the case."""
        if transfer.complaint:
            self._explain(transfer.complaint)
        return transfer

    def _explain(self, complaint: str = "") -> None:
        if self._explainer.explained is None:
            self._explainer.explain(Deadline(SECONDS), failed=True, complaint=complaint)

    def next_port(self) -> int:
        """A TCP or UDP port that this link has not used yet."""
        self._port += 1
        return self._port

    # -- observing ----------------------------------------------------------------------------------------------------

    @contextlib.contextmanager
    def capture(self, target: Path, *, whole: bool = False) -> Iterator[list[Frame]]:
        """Capture the frames at dom0's end (:attr:`end`) in the file ``target``. The list is filled at the end of the context.

        Checksums need ``whole`` frames; sizes need headers only. The log has the count of skipped frames with the reasons. Raises
        InfrastructureError if frames are missing from the capture.
        """
        found: list[Frame] = []
        taken = frames.Capture()
        try:
            with capture.to_file(self.host, self.end, target, self.expression, namespace=self.namespace, whole=whole):
                yield found
        finally:
            if target.exists():
                taken = frames.read(target)
                log.info("%s: %s", target.name, taken.summary)
                found += taken
        if taken.damage:
            raise InfrastructureError(f"{target.name}: {taken.damage}", hint="is dom0's /run full?")

    def checksum_errors(self) -> int:
        """TCP segments that dom0 discarded for a bad checksum since it booted (InCsumErrors in /proc/net/snmp)."""
        return snmp_counter(self.dom0("cat", "/proc/net/snmp"), "Tcp:", "InCsumErrors")


def digest_of(size: int, rounds: int = 1) -> str:
    """md5 of the ``size`` bytes that a peer in dom0 sends ``rounds`` times."""
    payload, digest = random.Random(SEED).randbytes(size), hashlib.md5(usedforsecurity=False)
    for _ in range(max(1, rounds)):
        digest.update(payload)
    return digest.hexdigest()
