# SPDX-License-Identifier: BSD-2-Clause
"""Find leaks of a case: list domains, xenstore, vifs, loop devices and processes of dom0 before and after, and compare.

The same script reads the log of dom0's kernel, which saves a round trip.

The idea is osstest's ts-leak-check.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

# Each process costs tens of milliseconds under emulation, so the script starts few. grep prints "<file>:<content>", and exits with 2
# if a process has ended meanwhile.
# dmesg of util-linux reads the log line by line, which takes a tenth of a second; busybox reads its end at once.
# xenstore-ls needs two requests for each node, and a guest has a hundred nodes: list only the paths that show a leak. If no domain
# ever existed, one of them is missing, and the script lists everything.
SCRIPT = """
echo '%domains'; xl list
echo '%xenstore'; xenstore-list -p /local/domain /libxl && xenstore-ls -f /local/domain/0/backend || xenstore-ls -f /
echo '%vifs'; if [ -d /sys/class/net ]; then for i in /sys/class/net/*; do echo "${i##*/}"; done; else ifconfig -l | tr ' ' '\\n'; fi
echo '%files'; if [ -f /proc/1/cmdline ]; then grep -aH . /sys/block/loop*/loop/backing_file /proc/[0-9]*/cmdline 2>/dev/null; true
else ps -axww -o pid=,command= | sed 's/^ *\\([0-9]*\\) /\\1:/'; fi
echo '%log'; if [ -f /proc/uptime ]; then read -r up idle < /proc/uptime; echo "$up"; fi; busybox dmesg -s 16384 2>/dev/null || dmesg
"""

# The domid in a name says which domain an item belongs to (FreeBSD's netback calls a vif xnb7.0):
#   /local/domain/7/...  /local/domain/0/backend/vbd/7/51712  /libxl/7/...  /vm/<uuid>  vif7.0
_OWNER = re.compile(
    r"^/local/domain/0/backend/\w+/(\d+)|^/local/domain/([1-9]\d*)|^/libxl/(\d+)|^(?:vif|xnb)(\d+)\.\d+|^tap(\d+)\."
)
# /dev/loop0 /var/lib/fxh/run-1a2b3c/root.img   xl create -p /var/lib/fxh/run-1a2b3c/fxh-1a2b3c-1-control.cfg
_RUN = re.compile(r"/run-([a-z0-9]{1,16})/|\bfxh-([a-z0-9]{1,16})-\d")
# /usr/lib/xen-4.20/bin/xenconsole 8 --num 0 --type pv
_CONSOLE_OF = re.compile(r"\bxenconsole (\d+)\b")
# Processes that serve domains. Other processes of dom0 may start and end at any time.
# xl create -p /root/f.cfg   /usr/bin/python3 /usr/lib/xen-4.17/bin/pygrub --runas=131079 ...
_PROCESS = re.compile(r"(?:^|/)(?:xl|qemu-system-\S+|qemu-dm|xenconsole|pygrub|python3? .*pygrub|libxl-save-helper)(?: |$)")


@dataclass(frozen=True)
class Item:
    """One item in dom0. ``owner`` is the domid that it belongs to, or None."""

    kind: str
    name: str
    owner: int | None = None

    def __str__(self) -> str:
        return f"{self.kind} {self.name}"


@dataclass(frozen=True)
class Inventory:
    """All items, and the domains as (domid, name)."""

    items: frozenset[Item]
    domains: tuple[tuple[int, str], ...]
    log: str = ""
    """The log of dom0's kernel, read after the items."""
    uptime: float = 0.0
    """Seconds from the boot of dom0 until the log was read."""

    def leaks_since(self, before: Inventory) -> tuple[Item, ...]:
        """Items that are new and belong to no existing domain."""
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
    """Parse the output of :data:`SCRIPT`. With ``run``, leave out items of other runs, because the host may be shared.

    A domain that starts or ends while the script runs can look like a leak. A caller that finds one must repeat the listing.
    """
    section = ""
    items: list[Item] = []
    domains: list[tuple[int, str]] = []
    # The log is last, since its lines may look like anything.
    text, _, log = text.partition("\n%log\n")
    uptime = re.match(r"(\d+\.\d+)\n", log)
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
                client = _CONSOLE_OF.search(command)
                items.append(Item("process", command, int(client[1]) if client else None))
    if run:
        items = [item for item in items if not any(found != run for found in _runs(item.name))]
    return Inventory(frozenset(items), tuple(dict.fromkeys(domains)), log, float(uptime[1]) if uptime else 0.0)


def _runs(name: str) -> list[str]:
    return [directory or domain for directory, domain in _RUN.findall(name)]


def _xenstore(path: str) -> Iterable[Item]:
    """The item of a path that is the root of a domain's data. The paths below it would be thousands of items."""
    match = re.match(r"/local/domain/0/backend/\w+/\d+(?:/\d+)?$|/local/domain/[1-9]\d*$|/libxl/\d+$", path)
    if match:
        yield Item("xenstore", path, _owner(path))


def _owner(name: str) -> int | None:
    match = _OWNER.match(name)
    return int(next(group for group in match.groups() if group)) if match else None
