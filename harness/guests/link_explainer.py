# SPDX-License-Identifier: BSD-2-Clause
"""Finds out why data between dom0 and a guest did not arrive: the counters of both, netback's rings, and a short capture.

Before a transfer this costs almost nothing: the network peer in dom0 prints dom0's counters, and a prepared guest saves its own in
a file. All other work happens after a failure, within :data:`SECONDS`.
"""

from __future__ import annotations

import contextlib
import logging
import re
import time
from dataclasses import replace
from typing import TYPE_CHECKING

from harness import trace
from harness.deadline import Deadline
from harness.dom0 import netpeer
from harness.errors import HarnessError, InfrastructureError
from harness.guests.explained import Explained
from harness.guests.peer import Listener, Peer, inside
from harness.oracles import frames, link_causes, short_capture
from harness.oracles.frames import Capture
from harness.oracles.link_causes import End, LinkSeen
from harness.safetext import plain
from harness.xen import events, netback

if TYPE_CHECKING:
    from harness.guests.link import Link

SECONDS = 12.0
"""Limit of one explanation."""

# Argument: an interface. Prints the counters of the protocols and of all interfaces, and the state of this one.
_COUNTERS = f"""
cat {" ".join(netpeer.COUNTERS)}
cd /sys/class/net/"$1" && read -r f < flags && echo "interface_up $((f & 1))"
[ -e brport ] && echo "bridged 1" || echo "bridged 0"
grep -v '[^0-9]0$' /proc/net/snmp6
echo "== ethtool -S"; ethtool -S "$1" 2>&1
echo "== tc -s qdisc"; tc -s qdisc show dev "$1" 2>&1
"""
_RINGS = f"""
{events.NETBACK}
grep -h . /sys/kernel/debug/xen-netback/"$1"/io_ring_q*
"""
# KiB that are sent again in each direction under the capture, seconds for that, and frames in the capture.
_AGAIN, _PATIENCE, _FRAMES = 16, 2.0, 400
# Characters of one reading that are kept.
_PART = 1 << 18
# Seconds for one reading of dom0, and for one of the guest. The console of an emulated guest is slow.
_DOM0, _GUEST = 3.0, 5.0
# The header of a pcap file.
_HEADER = 24
log = logging.getLogger("fxh.evidence")


class LinkExplainer:
    """The :class:`harness.guests.explained.Explainer` of one link."""

    def __init__(self, link: Link) -> None:
        self._link = link
        self.explained: Explained | None = None
        self._dom0 = ""
        self._file = f"/tmp/fxh-counted-{link.interface}"

    @property
    def subject(self) -> str:
        return f"vif {self._link.index}"

    # -- before ---------------------------------------------------------------------------------------------------------

    def begin(self) -> None:
        """Let the guest keep its counters in a file. This takes one command, and warm guests are prepared with it."""
        if command := self._link.guest.os.network_counters(self._link.interface):
            self._link.guest.run(f"( {command} ) > {self._file} 2>/dev/null", check=False)

    def took(self, counted: str) -> None:
        """Take dom0's counters, which a network peer prints before a transfer. The first ones count."""
        self._dom0 = self._dom0 or counted

    # -- after ----------------------------------------------------------------------------------------------------------

    def explain(self, deadline: Deadline, *, failed: bool = False, complaint: str = "") -> Explained:
        """Read all counters again, and write them to the guest's directory.

        ``failed``: data has just failed to arrive. ``complaint`` is that of the transfer.
        """
        with trace.step(trace.EVIDENCE, f"explain {self._link.present_vif}"):
            report: list[str] = []
            try:
                self.explained = self._explain(deadline, report, failed)
            except Exception as exc:  # a defect here must not hide the failure
                log.warning("%s: no explanation: %s: %s", self._link.present_vif, type(exc).__name__, exc)
                self.explained = Explained(counted=(f"not read: {exc}",), failed=failed)
                report.append(f"== not read\n{exc}")
            self.explained = replace(self.explained, complaint=complaint)
            path = self._link.guest.directory / f"network-{self._link.guest.name}-{self._link.interface}.txt"
            with contextlib.suppress(OSError):
                path.write_text("\n".join([*self.explained.all_rows, "", *(plain(part)[:_PART] for part in report)]) + "\n")
            return self.explained

    def _explain(self, deadline: Deadline, report: list[str], failed: bool) -> Explained:
        seen = self._dom0_side(deadline, report)
        seen = replace(seen, guest=self._guest_end(deadline, report))
        readable = seen.dom0.grown is not None
        rings = self._rings(deadline, report) if readable else ()
        capture, again, works = None, "", False
        if readable and seen.guest.grown is not None:
            capture, again, works = self._again(deadline)
        if rings and capture is None:
            time.sleep(0.5)
        later = self._rings(deadline, report) if rings else ()
        link = self._link
        seen = replace(
            seen,
            bridged=seen.bridged or bool(link.namespace),
            rings=rings,
            rings_later=later,
            sent=short_capture.direction(capture, link.there) if capture is not None else None,
            received=short_capture.direction(capture, link.here) if capture is not None else None,
        )
        described = netback.described(later)
        return Explained(
            link_causes.cause(seen, works=works),
            (*seen.lines, *([described] if described else [])),
            _captured(seen, capture, again),
            # A link that moves no data needs an explanation, too, if its guest is there to move any.
            failed=failed or (not works and seen.guest.grown is not None),
        )

    def _dom0_side(self, deadline: Deadline, report: list[str]) -> LinkSeen:
        """What dom0 saw."""
        end = self._link.end
        words = [*inside(self._link.namespace), "sh", "-c", _COUNTERS, "sh", end]
        try:
            text = self._link.host.transport.run(words, deadline.capped(_DOM0), check=False).text
        except HarnessError as exc:
            report.append(f"== dom0\nnot read: {exc.message}")
            return LinkSeen(End("dom0", end, why=exc.message))
        report += [f"== dom0 before\n{self._dom0}", f"== dom0\n{text}"]
        return link_causes.read_dom0(self._dom0, text, end)

    def _guest_end(self, deadline: Deadline, report: list[str]) -> End:
        guest, interface = self._link.guest, self._link.interface
        command = guest.os.network_counters(interface)
        try:
            if not command:
                raise InfrastructureError(f"the harness knows no counters of {guest.os.title}")
            if guest.console.death is not None:
                raise InfrastructureError("the guest is dead")
            if guest.config.serial_console and guest.host.facts.emulated:
                # Seven bytes a second (harness.console.session): the next command of the case would wait for all of it.
                raise InfrastructureError("its serial port is too slow")
            script = f"cat {self._file} 2>/dev/null; echo '== now'; {command}"
            text = guest.session.run(script, deadline.capped(_GUEST), check=False).text
        except HarnessError as exc:
            report.append(f"== {guest.name}\nnot read: {exc.message}")
            return End(guest.name, interface, why=exc.message)
        report.append(f"== {guest.name} before\n{text}")
        before, _, now = text.partition("== now\n")
        parsed = (guest.os.parse_counters(part, interface) for part in (before, now))
        return link_causes.end(guest.name, interface, *parsed)

    def _rings(self, deadline: Deadline, report: list[str]) -> tuple[netback.Ring, ...]:
        vif = self._link.present_vif
        try:
            # Not in the link's network namespace: it has a sysfs without debugfs.
            # At least a second, because the second reading is the last step.
            limit = Deadline(max(1.0, min(_DOM0, deadline.remaining)))
            text = self._link.host.transport.run(["sh", "-c", _RINGS, "sh", vif], limit, check=False).text
        except HarnessError as exc:
            text = f"not read: {exc.message}"
        report.append(f"== netback {vif}\n{text}")
        return netback.rings(text)

    # -- the same again, under a capture --------------------------------------------------------------------------------

    def _again(self, deadline: Deadline) -> tuple[Capture | None, str, bool]:
        """Send a little data both ways under a capture. Returns the capture, the result in words, and whether all arrived."""
        link, size = self._link, _AGAIN << 10
        path = link.guest.directory / f"network-{link.guest.name}-{link.interface}.pcap"
        if deadline.remaining < _PATIENCE:
            return None, "no time left for a capture", False
        port = link.next_port()
        words = ["both", link.here, str(port), str(size), "1", "1460", str(2 * _PATIENCE)]
        link.next_port()
        try:
            with contextlib.closing(_Capture(link)) as capture:
                # The peer's Python and tcpdump start at the same time.
                peer = Peer(link.host, words, link.namespace, ready=deadline.remaining)
                try:
                    capture.wait(deadline)
                    came, went = self._both_ways(peer, port, size, deadline)
                finally:
                    peer.stop()
                path.write_bytes(capture.end())
            read = frames.read(path)
        except (HarnessError, OSError) as exc:
            return None, f"no capture: {exc}", False
        result = f"{_AGAIN} KiB each way again: {_part(came, size)} reached dom0, {_part(went, size)} the guest"
        return read, result, came == went == size

    def _both_ways(self, peer: Peer, port: int, size: int, deadline: Deadline) -> tuple[int, int]:
        """The bytes that reached dom0 and the guest."""
        link = self._link
        nc = f"{link.nc(_PATIENCE)} {link.here}"
        up = f"dd if=/dev/zero bs=1024 count={size >> 10} 2>/dev/null | {nc} {port} > /dev/null 2>&1"
        script = f"( {up} ) & {nc} {port + 1} < /dev/null 2>/dev/null | wc -c; wait"
        text = ""
        with contextlib.suppress(HarnessError):  # the capture counts even if the guest does not answer
            text = link.guest.session.run(script, deadline.capped(3 * _PATIENCE), check=False).text
        came = 0
        with contextlib.suppress(InfrastructureError):  # it still waits for the rest
            came = peer.result(0.5).bytes
        number = re.search(r"\d{1,9}", text)
        return came, int(number[0]) if number else 0


class _Capture:
    """A tcpdump at dom0's end of a link, which prints its capture. Close it in any case."""

    def __init__(self, link: Link) -> None:
        words = ["tcpdump", "-i", link.end, "-U", "-Z", "root", "--immediate-mode", "-B", "16384", "-s", "65549"]
        # `timeout` ends it if the connection breaks.
        words = [*inside(link.namespace), "timeout", f"{2 * SECONDS:.0f}", *words, "-c", str(_FRAMES), "-w", "-"]
        self._transport, self._data = link.host.transport, b""
        self._stream = self._transport.open(["sh", "-c", 'echo $$; exec "$@" 2>/dev/null', "sh", *words])
        self._output, self._pid = Listener(self._stream, "tcpdump"), ""

    def wait(self, deadline: Deadline) -> None:
        """Wait until it captures. Raises InfrastructureError if it does not in time."""
        found = self._output.until(rb"^(\d+)\n(.{%d})" % _HEADER, deadline.remaining)
        self._pid, self._data = found[1].decode(), found[2]

    def end(self) -> bytes:
        """End it, and return the pcap file."""
        self._transport.run(["kill", "-INT", self._pid], Deadline(2), check=False)
        self._data += self._output.rest()
        with contextlib.suppress(TimeoutError):
            while more := self._stream.read(1 << 16, 1.0):
                self._data += more
        return self._data

    def close(self) -> None:
        self._stream.close()


def _part(count: int, size: int) -> str:
    return "all" if count == size else f"{count} bytes" if count else "nothing"


def _captured(seen: LinkSeen, capture: Capture | None, again: str) -> tuple[str, ...]:
    if capture is None or seen.sent is None or seen.received is None:
        return (again,) if again else ()
    rest = short_capture.others(capture)
    return (again, f"from the guest: {seen.sent}", f"from dom0: {seen.received}", *([f"other frames: {rest}"] if rest else []))
