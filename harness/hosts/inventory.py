"""What there is in a dom0, before and after: whatever a case left behind is found and named.

The idea is osstest's ts-leak-check: domains, xenstore, vifs, loop devices and processes are listed and compared.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

# Few processes, since each costs tens of milliseconds under emulation. grep prints "<file>:<content>".
SCRIPT = """
echo '%domains'; xl list
echo '%xenstore'; xenstore-ls -f /
echo '%vifs'; for i in /sys/class/net/*; do echo "${i##*/}"; done
echo '%loops'; grep -H . /sys/block/loop*/loop/backing_file 2>/dev/null
echo '%processes'; grep -aH . /proc/[0-9]*/cmdline 2>/dev/null | tr '\\000' ' '
true
"""

# What is listed belongs to a domain where its name says so:
#   /local/domain/7/...  /local/domain/0/backend/vbd/7/51712  /libxl/7/...  /vm/<uuid>  vif7.0
_OWNER = re.compile(r"^/local/domain/0/backend/\w+/(\d+)|^/local/domain/([1-9]\d*)|^/libxl/(\d+)|^vif(\d+)\.\d+|^tap(\d+)\.")
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


def parse(text: str) -> Inventory:
    """The output of :data:`SCRIPT`."""
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
        elif section == "vifs" and re.match(r"(?:vif|tap)\d+\.", line):
            items.append(Item("vif", line, _owner(line)))
        elif section == "loops":
            items.append(Item("loop", line.removeprefix("/sys/block/").replace("/loop/backing_file:", " ")))
        elif section == "processes":
            # /proc/467/cmdline:xl create -p /root/f.cfg
            command = line.partition(":")[2].strip()
            if _PROCESS.search(command):
                items.append(Item("process", command))
    return Inventory(frozenset(items), tuple(domains))


def _xenstore(path: str) -> Iterable[Item]:
    """Only the roots of what belongs to a domain: a path each would be thousands."""
    match = re.match(r"/local/domain/0/backend/\w+/\d+(?:/\d+)?$|/local/domain/[1-9]\d*$|/libxl/\d+$", path)
    if match:
        yield Item("xenstore", path, _owner(path))


def _owner(name: str) -> int | None:
    match = _OWNER.match(name)
    return int(next(group for group in match.groups() if group)) if match else None
