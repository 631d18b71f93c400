# SPDX-License-Identifier: BSD-2-Clause
"""What there is in a dom0, before and after: whatever a case left behind is found and named.

The idea is osstest's ts-leak-check: domains, xenstore, vifs, loop devices and processes are listed and compared.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

# Few processes, since each costs tens of milliseconds under emulation. grep prints "<file>:<content>", and ends with 2 for a
# process that is gone meanwhile.
# Of xenstore as little as there is to see: each node is two questions, and a guest has a hundred. Where no domain ever was, one
# of these is not there.
SCRIPT = """
echo '%domains'; xl list
echo '%xenstore'; xenstore-list -p /local/domain /libxl && xenstore-ls -f /local/domain/0/backend || xenstore-ls -f /
echo '%vifs'; if [ -d /sys/class/net ]; then for i in /sys/class/net/*; do echo "${i##*/}"; done; else ifconfig -l | tr ' ' '\\n'; fi
echo '%files'; if [ -f /proc/1/cmdline ]; then grep -aH . /sys/block/loop*/loop/backing_file /proc/[0-9]*/cmdline 2>/dev/null; true
else ps -axww -o pid=,command= | sed 's/^ *\\([0-9]*\\) /\\1:/'; fi
"""

# What is listed belongs to a domain where its name says so:
# (FreeBSD's netback calls a vif xnb7.0)
#   /local/domain/7/...  /local/domain/0/backend/vbd/7/51712  /libxl/7/...  /vm/<uuid>  vif7.0
_OWNER = re.compile(
    r"^/local/domain/0/backend/\w+/(\d+)|^/local/domain/([1-9]\d*)|^/libxl/(\d+)|^(?:vif|xnb)(\d+)\.\d+|^tap(\d+)\."
)
# /dev/loop0 /var/lib/fxh/run-1a2b3c/root.img   xl create -p /var/lib/fxh/run-1a2b3c/fxh-1a2b3c-1-control.cfg
_RUN = re.compile(r"/run-([a-z0-9]{1,16})/|\bfxh-([a-z0-9]{1,16})-\d")
# Processes that serve domains; the rest of a dom0's comes and goes.
_PROCESS = re.compile(r"(?:^|/)(?:xl|qemu-system-\S+|qemu-dm|xenconsole|pygrub|python3? .*pygrub|libxl-save-helper)(?: |$)")


@dataclass(frozen=True)
class Item:
    """One thing in dom0. ``owner`` is the domid it belongs to, or None."""

    kind: str
    name: str
    owner: int | None = None

    def __str__(self) -> str:
        return f"{self.kind} {self.name}"


@dataclass(frozen=True)
class Inventory:
    """All items, and the living domains as (domid, name)."""

    items: frozenset[Item]
    domains: tuple[tuple[int, str], ...]

    def leaks_since(self, before: Inventory) -> tuple[Item, ...]:
        """What is new and belongs to no domain that lives."""
        living = {domid for domid, _ in self.domains}
        names = [name for domid, name in self.domains if domid]
        found = []
        for item in sorted(self.items - before.items, key=str):
            if item.owner is not None and item.owner in living:
                continue
            if item.kind == "process" and any(name in item.name for name in names):
                continue
            found.append(item)
        return tuple(found)


def parse(text: str, run: str = "") -> Inventory:
    """The output of :data:`SCRIPT`. With ``run``, what is named as another run's is left out: the host may be shared.

    A domain that comes or goes meanwhile can look like a leak: whoever finds one looks again.
    """
    section = ""
    items: list[Item] = []
    domains: list[tuple[int, str]] = []
    for line in text.splitlines():
        if line.startswith("%"):
            section = line[1:]
        elif section == "domains":
            words = line.split()
            if len(words) >= 6 and words[-5].isdigit():
                domains.append((int(words[-5]), words[0]))
        elif section == "xenstore" and line.startswith("/"):
            items += _xenstore(line.partition(" = ")[0])
        elif section == "vifs" and re.match(r"(?:vif|xnb|tap)\d+\.", line):
            items.append(Item("vif", line, _owner(line)))
        elif line.startswith("/sys/block/"):
            items.append(Item("loop", line.removeprefix("/sys/block/").replace("/loop/backing_file:", " ")))
        elif section == "files":
            # /proc/467/cmdline:xl create -p /root/f.cfg
            command = line.partition(":")[2].replace("\0", " ").strip()
            if _PROCESS.search(command):
                items.append(Item("process", command))
    if run:
        items = [item for item in items if not any(found != run for found in _runs(item.name))]
    return Inventory(frozenset(items), tuple(dict.fromkeys(domains)))


def _runs(name: str) -> list[str]:
    return [one or other for one, other in _RUN.findall(name)]


def _xenstore(path: str) -> Iterable[Item]:
    """Only the roots of what belongs to a domain: a path each would be thousands."""
    match = re.match(r"/local/domain/0/backend/\w+/\d+(?:/\d+)?$|/local/domain/[1-9]\d*$|/libxl/\d+$", path)
    if match:
        yield Item("xenstore", path, _owner(path))


def _owner(name: str) -> int | None:
    match = _OWNER.match(name)
    return int(next(group for group in match.groups() if group)) if match else None
