# SPDX-License-Identifier: BSD-2-Clause
"""``--keep failed``: leave a dead guest paused for a limited time and print the commands that attach to it."""

from __future__ import annotations

import logging
import time

from harness.deadline import Deadline
from harness.errors import HarnessError
from harness.guests.guest import Guest
from harness.hosts.access import Access
from harness.hosts.direct import DirectHost
from harness.xen import gdbsx

log = logging.getLogger("fxh.keep")

# The most guests that a worker keeps: each takes the memory of a guest, or of a whole lab.
MOST = 3

# Prints the debugging tools of dom0, each as its name and its path.
_TOOLS = """
for p in /usr/lib/xen*/bin /usr/libexec/xen/bin /usr/local/libexec/xen/bin /usr/local/lib/xen/bin; do
  [ -x "$p/xenctx" ] && echo "xenctx $p/xenctx"
done
"""
_TOOLS += gdbsx.PROBE + "true\n"


def commands(access: Access, name: str, domid: int, tools: dict[str, str], until: str, *, serial: bool = False) -> str:
    """The commands for a person, as text. ``tools`` are the paths of dom0's debugging tools by name.

    ``serial``: the guest's shell is at its serial port.
    """

    def in_dom0(command: str) -> str:
        return f"{access.dom0} {command}".strip()

    rows = [
        ("console", f"fxh console {name} {'--serial ' if serial else ''}{access.option}"),
        ("continue", in_dom0(f"xl unpause {domid}")),
        ("core dump", in_dom0(f"xl dump-core {domid} {access.directory}/{name}.core")),
    ]
    if "xenctx" in tools:
        rows.insert(1, ("vCPUs", in_dom0(f"{tools['xenctx']} -a {domid}")))
    if "gdbsx" in tools:
        rows.append(("debugger", in_dom0(f"{tools['gdbsx']} -a {domid} 64 9999")))
    if access.remove:
        rows.append(("remove it", access.remove))
    head = f"{name} (domain {domid}) is kept, paused, until {until}:"
    return "\n".join([head, *(f"  {what:<10} {line}" for what, line in rows)])


def keep(host: DirectHost, guests: list[Guest], minutes: int) -> str:
    """Pause the guests and let them outlive this process for ``minutes``. Returns the text to print, or "" if none is kept.

    The worker then gives up the host, whose share ends with the guests.
    """
    try:
        rows = [(guest, row) for guest in guests if (row := guest.state()) is not None]
        tools = dict(line.split(" ", 1) for line in host.transport.run(["sh", "-c", _TOOLS], Deadline(20)).text.splitlines())
        until = time.strftime("%H:%M UTC", time.gmtime(time.time() + 60 * minutes))
        access = host.describe_access()
        for guest, row in rows:
            if not (row.paused or row.shutdown):
                host.toolstack.pause(row.domid)
            guest.detach()
        kept = host.keep_for([guest.name for guest, _ in rows], 60.0 * minutes)
    except HarnessError as exc:
        log.warning("could not keep the guest: %s", exc.message)
        return ""
    return "\n".join(
        commands(access, guest.name, row.domid, tools, until, serial=guest.config.serial_console)
        for guest, row in rows
        if guest.name in kept
    )
