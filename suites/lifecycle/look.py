# SPDX-License-Identifier: BSD-2-Clause
"""One look at dom0 during a random walk, in one trip: a command over ssh takes a second under emulation."""

from __future__ import annotations

import re
import secrets
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace

from harness.deadline import Deadline
from harness.guests.guest import Guest
from harness.hosts import inventory
from harness.hosts.inventory import Inventory
from harness.oracles import counters
from harness.oracles.ballooning import MIB
from harness.xen.listing import parse_list
from harness.xen.xenstore import parse_tree

# Arguments: domid, vif, and a line that separates the parts which the guest can write to.
_SCRIPT = f"""
echo '== clock'; date +%s
echo '== states'; xenstore-ls -f "/local/domain/$1/device"
for kind in vbd vif; do xenstore-ls -f "/local/domain/0/backend/$kind/$1"; done
echo '== vif'; for n in rx_packets tx_packets rx_errors tx_errors; do echo "$n $(cat /sys/class/net/$2/statistics/$n)"; done
echo "$3"; xl dmesg; echo "$3"
{inventory.SCRIPT}
"""
# /local/domain/7/device/vbd/51744/state    /local/domain/0/backend/vif/7/0/state
_STATE = re.compile(r"/(?:device/(?P<front>v\w+)/(?P<number>\d+)|backend/(?P<back>v\w+)/\d+/(?P<which>\d+))/state")


@dataclass(frozen=True)
class Look:
    """What dom0 shows of the guest's domain and of itself."""

    states: Mapping[str, str]
    """The xenbus state by end and device, such as ``front vbd 51744``."""
    vif: Mapping[str, int]
    clock: int
    xen: str
    """Xen's log."""
    inventory: Inventory
    memory: int
    """Bytes of the domain by Xen's count; 0 if there is no such domain."""
    begun: float = 0.0
    """When the look began (monotonic s): the logs have all lines up to then."""


def parse(text: str, separator: str, name: str, run: str) -> Look:
    """The output of the script, for the domain ``name``; ``run`` as in :func:`harness.hosts.inventory.parse`."""
    head, xen, rest = [*text.split(f"{separator}\n"), "", ""][:3]
    parts = counters.sections(head)
    states = {}
    for path, value in parse_tree(parts.get("states", "")).items():
        if match := _STATE.search(path):
            states[f"front {match['front']} {match['number']}" if match["front"] else f"back {match['back']} {match['which']}"] = (
                value
            )
    vif = {key: int(value) for key, value in re.findall(r"(\w+) (\d+)", parts.get("vif", ""))}
    clock = re.search(r"\d+", parts.get("clock", ""))
    listed = rest.partition("%domains\n")[2].partition("%xenstore\n")[0]
    memory = next((row.memory * MIB for row in parse_list(listed) if row.name == name), 0)
    return Look(states, vif, int(clock[0]) if clock else 0, xen, inventory.parse(rest, run), memory)


def look(guest: Guest, vif: str) -> Look:
    """Look at dom0 now. ``vif`` is the vif whose packets count."""
    separator, host = f"fxh-{secrets.token_hex(8)}", guest.host
    argv = ["sh", "-c", _SCRIPT, "sh", str(guest.domid), vif, separator]
    begun = time.monotonic()
    done = host.transport.run(argv, Deadline(120), check=False)
    found = parse(done.text, separator, guest.name, "" if host.checkpoints is not None else host.run_id)
    return replace(found, begun=begun)
