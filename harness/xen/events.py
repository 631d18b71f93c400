# SPDX-License-Identifier: BSD-2-Clause
"""Reads Xen's dump of event channels (``xl debug-keys e``) to find backends in dom0 that no longer react to a guest."""

from __future__ import annotations

import re
import secrets
import time
from dataclasses import dataclass

from harness.transport import Transport
from harness.xen import hypervisor_log

# Shell: make the debug files of Linux's netback available.
NETBACK = "[ -d /sys/kernel/debug/xen-netback ] || mount -t debugfs none /sys/kernel/debug"
# Shell: print the indices of netback's rings (drivers/net/xen-netback/xenbus.c, xenvif_read_io_ring()).
RINGS = f"""
{NETBACK}
grep -H . /sys/kernel/debug/xen-netback/*/io_ring_q*
"""
# Prints Xen's log before and after the dump, with the line "$1" between them.
_SCRIPT = 'xl dmesg; echo "$1"; xl debug-keys e; sleep 0.2; xl dmesg'
_DUMP = "'e' pressed -> dumping event-channel info"
# (XEN) [   70.522012] Event channel information for domain 0:
_DOMAIN = re.compile(r"Event channel information for domain (\d+):")
# (XEN) [   70.524617]       32 [1/1/  -   ]: s=3 n=0 x=0 d=2 p=12       (xen/common/event_channel.c, domain_dump_evtchn_info())
_PORT = re.compile(r" (\d+) \[([01])/([01])/[^]]*\]: s=3 .* d=(\d+) p=(\d+)")


@dataclass(frozen=True)
class Channel:
    """One end of an interdomain channel: ``port`` of ``domain``, connected to ``remote_port`` of the domain ``remote``."""

    domain: int
    port: int
    pending: bool
    masked: bool
    remote: int
    remote_port: int


def parse(text: str) -> tuple[Channel, ...]:
    """The last dump of event channels in Xen's log; () if there is none."""
    domain, found = -1, []
    for line in text.rpartition(_DUMP)[2].splitlines() if _DUMP in text else ():
        if match := _DOMAIN.search(line):
            domain = int(match[1])
        elif match := _PORT.search(line):
            port, pending, masked, remote, remote_port = map(int, match.groups())
            found.append(Channel(domain, port, bool(pending), bool(masked), remote, remote_port))
    return tuple(found)


def dump(transport: Transport) -> tuple[Channel, ...]:
    """All interdomain channels, from a new dump; () if the dump is longer than Xen's log, so that its header is lost."""
    # Guests write into Xen's log, but they do not know this line.
    line = f"fxh-{secrets.token_hex(8)}\n"
    before, _, after = transport.run(["sh", "-c", _SCRIPT, "sh", line.strip()]).text.partition(line)
    return parse(hypervisor_log.since(before, after))


def deaf(transport: Transport, domid: int) -> tuple[Channel, ...]:
    """dom0's channels to ``domid`` that are pending and masked, and still are a second later: dom0 will never handle them.

    Linux 6.12 has such channels. The probable cause, from its source: xen-netback's first event arrives while it binds the
    channel. Its thread gives the late EOI for the interrupt 0, because ``rx_irq`` is not set yet, and the channel stays masked
    (drivers/net/xen-netback/interface.c, xenvif_connect_data(); drivers/xen/events/events_base.c, xen_irq_lateeoi()).
    """

    def stuck() -> set[Channel]:
        return {c for c in dump(transport) if c.domain == 0 and c.remote == domid and c.pending and c.masked}

    first = stuck()
    if not first:
        return ()
    time.sleep(1.0)
    return tuple(sorted(first & stuck(), key=lambda c: c.port))
