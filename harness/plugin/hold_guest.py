# SPDX-License-Identifier: BSD-2-Clause
"""``--keep failed``: a dead guest is left as it is, paused, with the commands that attach to it; it goes by itself."""

from __future__ import annotations

import logging
import time
from dataclasses import dataclass

from harness.deadline import Deadline
from harness.errors import HarnessError
from harness.guests.guest import Guest
from harness.hosts.host import DirectHost
from harness.lab.host import LabHost
from harness.xen import gdbsx

log = logging.getLogger("fxh.keep")

# A worker keeps no more: each takes the memory of a guest, or of a whole lab.
MOST = 3

_AIDS = """
for p in /usr/lib/xen*/bin /usr/libexec/xen/bin /usr/local/libexec/xen/bin /usr/local/lib/xen/bin; do
  [ -x "$p/xenctx" ] && echo "xenctx $p/xenctx"
done
"""
_AIDS += gdbsx.PROBE + "true\n"


@dataclass(frozen=True)
class Place:
    """Where a kept guest is: what goes before a command to have it run in its dom0, and how fxh names it."""

    dom0: str
    option: str
    directory: str


def commands(place: Place, name: str, domid: int, aids: dict[str, str], until: str) -> str:
    """What a person types, as text."""

    def there(command: str) -> str:
        return f"{place.dom0} {command}".strip()

    rows = [
        ("its console", f"fxh console {name} {place.option}"),
        ("let it run on", there(f"xl unpause {domid}")),
        ("a core", there(f"xl dump-core {domid} {place.directory}/{name}.core")),
    ]
    if "xenctx" in aids:
        rows.insert(1, ("its vCPUs", there(f"{aids['xenctx']} -a {domid}")))
    if "gdbsx" in aids:
        rows.append(("a debugger", there(f"{aids['gdbsx']} -a {domid} 64 9999")))
    head = f"{name} (domain {domid}) is kept, paused, until {until}:"
    return "\n".join([head, *(f"  {what:<14} {line}" for what, line in rows)])


def keep(host: DirectHost, guests: list[Guest], minutes: int) -> str:
    """Pause the guests and see to it that they outlive us for ``minutes``. Returns what to print, or "" when nothing is kept.

    The host is no longer ours afterwards: its share goes with the guests.
    """
    lines = []
    try:
        rows = [(guest, guest.state()) for guest in guests]
        aids = dict(line.split(" ", 1) for line in host.transport.run(["sh", "-c", _AIDS], Deadline(20)).text.splitlines())
        until = time.strftime("%H:%M UTC", time.gmtime(time.time() + 60 * minutes))
        place = _place(host)
        for guest, row in rows:
            if row is None:
                continue
            if not (row.paused or row.shutdown):
                host.toolstack.pause(row.domid)
            if host.lease is not None and not host.lease.keep_domain(guest.name, 60.0 * minutes):
                continue
            guest.detach()
            lines.append(commands(place, guest.name, row.domid, aids, until))
        if lines and isinstance(host, LabHost):
            host.lab.keep_for(60.0 * minutes)
            lines.append(f"  {'all of it away':<14} fxh lab rm {host.lab.name}")
    except HarnessError as exc:
        log.warning("could not keep the guest: %s", exc.message)
        return ""
    return "\n".join(lines)


def _place(host: DirectHost) -> Place:
    if isinstance(host, LabHost):
        return Place(f"fxh lab ssh {host.lab.name}", f"--lab {host.lab.name}", "/root")
    name = host.config.name or host.config.address
    dom0 = "" if host.config.address == "local" else f"ssh {host.config.address}"
    return Place(dom0, f"--xen-host {name}", host.directory)
