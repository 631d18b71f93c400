# SPDX-License-Identifier: BSD-2-Clause
"""Names the likeliest cause when data between dom0 and a guest does not arrive, from the counters of both kernels."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, field, replace

from harness.oracles import counters
from harness.oracles.counters import (
    BAD_CHECKSUM,
    DROPPED_IN,
    DROPPED_OUT,
    ERRORS_IN,
    ERRORS_OUT,
    FULL,
    IN,
    OUT,
    RETRANSMITTED,
    UNASSEMBLED,
    UNROUTED,
    Counts,
    total,
)
from harness.oracles.short_capture import Direction
from harness.xen.netback import Ring

# States among the counters (harness.guests.link_explainer).
_STATES = ("interface_up", "bridged")
#  Sent 840 bytes 12 pkt (dropped 3, overlimits 0 requeues 0)      (tc -s qdisc)
_QUEUE = re.compile(r"\(dropped (\d{1,12}),")
#      tx_frag_overflow: 0          (ethtool -S; counts from the creation of the vif)
_DRIVER = re.compile(r"^ +(\w{1,40}): (\d{1,20})$", re.MULTILINE)
# Fewer retransmissions than this also happen on a good link.
_RETRANSMISSIONS = 3
# Fewer dropped frames than this are those of a device that is just being connected.
_DROPS = 3
# Counters that a finding shows for each side.
_SHOWN = 8


@dataclass(frozen=True)
class End:
    """A kernel, and its interface on the link. ``grown`` has the counters that grew; None if they were not read, and ``why``."""

    name: str
    interface: str
    grown: Counts | None = None
    up: bool | None = None
    """Whether the interface is up; None if unknown."""
    why: str = ""

    def count(self, *meanings: str) -> int:
        return total(self.grown, *meanings) if self.grown is not None else 0

    def __str__(self) -> str:
        if self.grown is None:
            return f"{self.name}: not read: {self.why}"
        down = "" if self.up in (True, None) else "is down; "
        return f"{self.name}, {self.interface}: {down}{counters.listed(self.grown, _SHOWN) or 'nothing changed'}"


@dataclass(frozen=True)
class LinkSeen:
    """The counters and states of a link. An interface of dom0 receives what the guest sends: ``dom0.count(IN)`` are frames from the guest."""

    dom0: End
    guest: End = End("the guest", "its interface")
    bridged: bool = True
    """Whether the vif is where it should be: a port of the bridge, or in its network namespace."""
    queue_dropped: int = 0
    """Frames to the guest that dom0's queueing discipline dropped."""
    rings: tuple[Ring, ...] = ()
    rings_later: tuple[Ring, ...] = ()
    """The same rings some time later."""
    sent: Direction | None = None
    """Captured packets of the guest."""
    received: Direction | None = None
    """Captured packets of dom0."""

    @property
    def lines(self) -> tuple[str, ...]:
        """The counters of both sides, for a finding."""
        found = [str(self.dom0), str(self.guest)]
        if self.queue_dropped:
            found[0] += f"; its queue dropped {self.queue_dropped}"
        return tuple(found)


def end(name: str, interface: str, before: Counts, now: Counts) -> End:
    """One side, from its counters before and now. The state of the interface is among the counters of now."""
    up = now.get("interface_up")
    grown = {name: value for name, value in counters.grown(before, now).items() if name not in _STATES}
    return End(name, interface, grown, None if up is None else up == 1)


def read_dom0(before: str, text: str, vif: str) -> LinkSeen:
    """dom0's side, from its counters before (harness.dom0.netpeer; may be "") and the text that link_explainer reads now.

    Without the counters before, those of the protocols are unknown: they began with dom0. The vif's own began with the vif.
    """
    now = counters.linux(text.partition("\n== ")[0], vif)
    first = counters.linux(before, vif) or {name: value for name, value in now.items() if name[:3] not in ("rx_", "tx_")}
    side = end("dom0", vif, first, now)
    driver = {name: int(value) for name, value in _DRIVER.findall(text) if int(value)}
    bridged = now.get("bridged", 1) == 1
    return LinkSeen(
        replace(side, grown={**(side.grown or {}), **driver}), bridged=bridged, queue_dropped=sum(map(int, _QUEUE.findall(text)))
    )


@dataclass(frozen=True)
class Rule:
    """``says`` returns a sentence if the rule explains the observations, else "". A ``weak`` rule also fires on a link that works."""

    name: str
    says: Callable[[LinkSeen], str]
    weak: bool = field(default=False, kw_only=True)


def cause(seen: LinkSeen, *, works: bool = False) -> str:
    """The likeliest cause in one sentence; "" if no rule fires. With ``works`` the link moves data now, and weak rules do not count."""
    return next((text for rule in RULES if not (works and rule.weak) and (text := rule.says(seen))), "")


# -- the rules ----------------------------------------------------------------------------------------------------------


def _guest_down(seen: LinkSeen) -> str:
    return f"the guest's interface {seen.guest.interface} is down" if seen.guest.up is False else ""


def _vif_down(seen: LinkSeen) -> str:
    return f"dom0's {seen.dom0.interface} is down" if seen.dom0.up is False else ""


def _not_bridged(seen: LinkSeen) -> str:
    return "" if seen.bridged else f"dom0's {seen.dom0.interface} is not a port of the bridge, so dom0 gets nothing from it"


def _dom0_checksums(seen: LinkSeen) -> str:
    count = seen.dom0.count(BAD_CHECKSUM)
    if not count or count < seen.guest.count(BAD_CHECKSUM):
        return ""
    head = f"dom0 discarded {count} packets for a wrong checksum"
    sent = seen.sent
    if sent is None or not sent.packets:
        return head
    if sent.bad > sent.blank:
        return (
            f"{head}: {sent.bad - sent.blank} of {sent.packets} captured packets of the guest are damaged on {seen.dom0.interface}"
        )
    if sent.blank:
        return f"{head}: the guest sends packets without a full checksum ({sent.blank} of {sent.packets} captured)"
    return f"{head}, which are right on {seen.dom0.interface}: they are damaged after it"


def _guest_checksums(seen: LinkSeen) -> str:
    count = seen.guest.count(BAD_CHECKSUM)
    if not count:
        return ""
    head = f"the guest discarded {count} packets for a wrong checksum"
    received = seen.received
    if received is None or not received.packets:
        return head
    if received.bad > received.blank:
        bad = f"{received.bad - received.blank} of {received.packets}"
        return f"{head}: {bad} captured packets of dom0 are damaged before {seen.dom0.interface} hands them over"
    if received.blank:
        return f"{head}: dom0 left checksums to the guest ({received.blank} of {received.packets} captured), which does not accept them"
    return f"{head}, which are right on {seen.dom0.interface}: they are damaged in netback, the ring or the guest"


def _queue_dropped(seen: LinkSeen) -> str:
    return f"dom0's queue of {seen.dom0.interface} dropped {seen.queue_dropped} frames for the guest" if seen.queue_dropped else ""


def _requests_left(seen: LinkSeen) -> str:
    """The same request waits at two points in time."""
    later = {(ring.queue, ring.kind): ring for ring in seen.rings_later}
    for ring in seen.rings:
        now = later.get((ring.queue, ring.kind))
        if ring.kind == "TX" and ring.waiting and now and now.waiting and now.consumed == ring.consumed:
            return f"netback does not take {now.waiting} requests of the guest from queue {ring.queue}"
    return ""


def _no_buffers(seen: LinkSeen) -> str:
    rings = [ring for ring in (seen.rings_later or seen.rings) if ring.kind == "RX"]
    dropped = seen.dom0.count(DROPPED_OUT)
    empty = [ring for ring in rings if not ring.waiting]
    if not dropped or not empty:
        return ""
    return (
        f"the guest offers no buffer for received frames in queue {empty[0].queue}, "
        f"and {seen.dom0.interface} dropped {dropped} frames for it"
    )


def _sent_not_received(seen: LinkSeen) -> str:
    sent = seen.guest.count(OUT)
    if not sent or seen.dom0.grown is None or seen.dom0.count(IN):
        return ""
    return f"the guest counts {sent} sent frames, and dom0's {seen.dom0.interface} received none: they stay in the ring"


def _received_not_sent(seen: LinkSeen) -> str:
    sent = seen.dom0.count(OUT)
    if not sent or seen.guest.grown is None or seen.guest.count(IN):
        return ""
    return f"dom0's {seen.dom0.interface} sent {sent} frames, and the guest's {seen.guest.interface} counts none of them"


def _guest_drops(seen: LinkSeen) -> str:
    return _drops(seen.guest, "the guest's", "received", DROPPED_IN, ERRORS_IN) or _drops(
        seen.guest, "the guest's", "sent", DROPPED_OUT, ERRORS_OUT
    )


def _vif_drops(seen: LinkSeen) -> str:
    return _drops(seen.dom0, "dom0's", "received", DROPPED_IN, ERRORS_IN) or _drops(
        seen.dom0, "dom0's", "sent", DROPPED_OUT, ERRORS_OUT
    )


def _drops(end: End, whose: str, way: str, drops: str, errors: str) -> str:
    pairs = ((drops, "dropped"), (errors, "broken"))
    counted = [f"{count} {word}" for meaning, word in pairs if (count := end.count(meaning)) >= _DROPS]
    return f"{whose} {end.interface} counts {' and '.join(counted)} frames of those it {way}" if counted else ""


def _stack(meaning: str, what: str) -> Callable[[LinkSeen], str]:
    """A rule for a counter of the protocols, of either side. ``what`` follows the number."""

    def says(seen: LinkSeen) -> str:
        counted = [f"{end.name} {what.format(count)}" for end in (seen.dom0, seen.guest) if (count := end.count(meaning))]
        return "; ".join(counted)

    return says


def _retransmitted(seen: LinkSeen) -> str:
    counted = [
        f"{end.name} retransmitted {count}"
        for end in (seen.dom0, seen.guest)
        if (count := end.count(RETRANSMITTED)) >= _RETRANSMISSIONS
    ]
    return f"{' and '.join(counted)} segments, and no counter shows where they are lost" if counted else ""


def _silent(seen: LinkSeen) -> str:
    if seen.guest.grown is None or seen.dom0.grown is None or seen.guest.count(OUT) or seen.dom0.count(IN):
        return ""
    return f"the guest sent no frame on {seen.guest.interface}"


# The first one that fires gives the cause: states, then counters of one certain mechanism, then general ones.
RULES = (
    Rule("guest interface down", _guest_down),
    Rule("vif down", _vif_down),
    Rule("dom0 discards for the checksum", _dom0_checksums),
    Rule("guest discards for the checksum", _guest_checksums),
    Rule("vif off the bridge", _not_bridged),
    Rule("dom0's queue drops", _queue_dropped),
    Rule("netback deaf", _requests_left),
    Rule("no receive buffers", _no_buffers),
    Rule("sent and not received", _sent_not_received),
    Rule("received and not delivered", _received_not_sent),
    Rule("guest interface drops", _guest_drops, weak=True),
    Rule("vif drops", _vif_drops, weak=True),
    Rule("no route", _stack(UNROUTED, "has no route for {} packets"), weak=True),
    Rule("not reassembled", _stack(UNASSEMBLED, "could not reassemble {} packets"), weak=True),
    Rule("buffer full", _stack(FULL, "dropped {} packets because a buffer was full"), weak=True),
    Rule("retransmissions", _retransmitted, weak=True),
    Rule("silent guest", _silent, weak=True),
)
