# SPDX-License-Identifier: BSD-2-Clause
"""Names the likeliest cause when a guest's disk does not read or write, from the counters of blkback, dom0 and the guest."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace

from harness.oracles.counters import sections

# public/io/xenbus.h
_STATES = {"": "has no node", "1": "is initialising", "2": "waits", "3": "is initialised", "4": "is connected", "5": "is closing", "6": "is closed"}  # fmt: skip
_CONNECTED = "4"
# The block statistics of /sys/block/*/stat (Documentation/block/stat.rst): finished reads and writes, and requests in flight.
_READS, _WRITES, _IN_FLIGHT = 0, 4, 8
# Characters of a kernel's message in a cause, and messages that are kept.
_MESSAGE, _MESSAGES = 160, 20
# [   71.404262] I/O error, dev loop0, sector 8 op 0x0:(READ) flags 0x80700 phys_seg 1 prio class 2
# [    5.1] blk_update_request: I/O error, dev sda, sector 2048        [   9.0] Buffer I/O error on dev dm-0, logical block 1
# [   12.5] loop: Write error at byte offset 4096, length 4096.
# g_vfs_done():xbd1[READ(offset=65536, length=8192)]error = 5      (FreeBSD)
_ERROR = re.compile(
    r"I/O error|loop: (?:Write|Read) error|critical \w+ error|lost (?:async )?page write|xen-?blkback.*(?:error|fail|invalid)"
    r"|g_vfs_done\(\):.*error = \d+",
    re.IGNORECASE,
)
_TIME = re.compile(r"^\[ *(\d+\.\d+)\](?:\[[^\]]*\])? ?")
# later vbd-12-51712
_VBD = re.compile(r"(first|later) vbd-\d+-(\d{1,10})")
# /local/domain/12/device/vbd/51712/state = "4"    /local/domain/0/backend/vbd/12/51712/state = "4"
_STATE = re.compile(r"^/local/domain/\d+/(device|backend)/vbd/(?:\d+/)?(\d{1,10})/state = \"(\d{0,2})\"", re.MULTILINE)


@dataclass(frozen=True)
class Counted:
    """One reading of a disk: blkback's ``statistics``, and the finished and running requests of the device behind it."""

    vbd: Mapping[str, int] = field(default_factory=dict)
    finished: int = 0
    in_flight: int = 0


@dataclass(frozen=True)
class DiskSeen:
    """A disk of a guest: ``name`` is the guest's, ``number`` the vdev's, ``device`` dom0's device behind it, such as loop3."""

    number: int
    name: str
    device: str = ""
    mode: str = ""
    frontend: str = ""
    backend: str = ""
    """The xenbus states; "" without a node."""
    first: Counted = Counted()
    later: Counted = Counted()
    """Some time later."""
    errors: tuple[str, ...] = ()
    """Messages of dom0's kernel about the device since the case began."""
    guest_errors: tuple[str, ...] = ()
    waiting: int = 0
    """Requests for which the guest waits."""

    @property
    def line(self) -> str:
        """The counters in one line of a finding."""
        vbd = self.later.vbd
        counted = ", ".join(f"{name} {vbd[name]}" for name in sorted(vbd) if vbd[name]) or "no request"
        behind = f" on {self.device}" if self.device else ""
        behind += ", read-only" if self.mode == "r" else ""
        busy = f"; {self.later.in_flight} requests in flight on {self.device}" if self.later.in_flight else ""
        waits = f"; the guest waits for {self.waiting}" if self.waiting else ""
        return f"{self.name}: blkback{behind}: {counted}{busy}{waits}"


def disks(text: str, name_of: Callable[[int], str], since: float) -> tuple[DiskSeen, ...]:
    """The disks in the output of :data:`harness.guests.disk_explainer.SCRIPT`. ``name_of`` names a vdev's number in the guest.

    ``since`` is in seconds of dom0's uptime: earlier messages of its kernel do not count.
    """
    parts = sections(text)
    messages = kernel_errors(parts.get("dmesg", ""), since)
    states = {(side, int(number)): state for side, number, state in _STATE.findall(parts.get("xenstore", ""))}
    first: dict[int, DiskSeen] = {}
    later = {number: DiskSeen(number, name_of(number)) for _, number in states}
    for title, body in parts.items():
        if match := _VBD.fullmatch(title):
            number = int(match[2])
            (first if match[1] == "first" else later)[number] = _disk(number, name_of(number), body)
    return tuple(
        replace(
            disk,
            frontend=states.get(("device", number), ""),
            backend=states.get(("backend", number), ""),
            first=first[number].later if number in first else Counted(),
            errors=tuple(line for line in messages if disk.device and re.search(rf"\b{re.escape(disk.device)}\b", line)),
        )
        for number, disk in later.items()
    )


def uptime(text: str) -> float:
    """dom0's uptime in seconds in the output of that script; 0 if it is missing."""
    match = re.match(r"\d{1,12}\.\d+", sections(text).get("uptime", ""))
    return float(match[0]) if match else 0.0


def _disk(number: int, name: str, body: str) -> DiskSeen:
    """One reading. Its lines are ``device loop3``, ``mode w``, ``stat 12 0 ...`` and ``statistics/rd_req 12``."""
    words = {line.partition(" ")[0]: line.partition(" ")[2].strip() for line in body.splitlines()}
    vbd = {key.partition("/")[2]: int(value) for key, value in words.items() if key.startswith("statistics/") and value.isdigit()}
    stat = [int(word) for word in words.get("stat", "").split() if word.isdigit()]
    counted = Counted(vbd, stat[_READS] + stat[_WRITES], stat[_IN_FLIGHT]) if len(stat) > _IN_FLIGHT else Counted(vbd)
    return DiskSeen(number, name, words.get("device", ""), words.get("mode", ""), later=counted)


def linux_in_flight(text: str) -> dict[str, int]:
    """The unfinished requests of each disk, from lines ``disk NAME`` and the numbers of /sys/block/NAME/stat."""
    # disk xvda 12 0 96 4 0 0 0 0 1 4 4
    return {match[1]: int(match[2]) for match in re.finditer(r"^disk (\w+)(?: +\d+){8} +(\d{1,9})\b", text, re.MULTILINE)}


def freebsd_in_flight(text: str) -> dict[str, int]:
    """The unfinished requests of each disk in the output of ``iostat -Ix`` (usr.sbin/iostat/iostat.c)."""
    # device           r/i         w/i         kr/i         kw/i qlen   tsvc_t/i      sb/i
    # xbd0          1265.0       118.0      25984.5       1576.0    0        2.1       1.9
    return {match[1]: int(match[2]) for match in re.finditer(r"^(\w+)(?: +\d+\.\d+){4} +(\d{1,9}) ", text, re.MULTILINE)}


def kernel_errors(text: str, since: float = 0.0) -> tuple[str, ...]:
    """The lines of a kernel's log from ``since`` (seconds of its uptime) on that report a failed read or write."""
    found = []
    for line in text.splitlines():
        time = _TIME.match(line)
        if (time is None or float(time[1]) >= since) and _ERROR.search(line):
            found.append(line[time.end() if time else 0 :][:_MESSAGE])
    return tuple(found[-_MESSAGES:])


@dataclass(frozen=True)
class Rule:
    """``says`` returns a sentence if the rule explains the observations, else "". A ``weak`` rule needs a finding that names the disk."""

    name: str
    says: Callable[[DiskSeen], str]
    weak: bool = field(default=False, kw_only=True)


def cause(seen: Iterable[DiskSeen], reason: str) -> str:
    """The likeliest cause of the finding ``reason`` in one sentence; "" if no rule fires."""
    ordered = sorted(seen, key=lambda disk: not named(disk, reason))
    for rule in RULES:
        for disk in ordered:
            if (not rule.weak or named(disk, reason)) and (text := rule.says(disk)):
                return text
    return ""


def named(disk: DiskSeen, reason: str) -> bool:
    """Whether a finding names the disk."""
    return re.search(rf"\b{re.escape(disk.name)}\b", reason) is not None


# -- the rules ----------------------------------------------------------------------------------------------------------


def _dom0_errors(disk: DiskSeen) -> str:
    if not disk.errors:
        return ""
    more = f" (and {len(disk.errors) - 1} more)" if len(disk.errors) > 1 else ""
    return f"dom0 could not read or write {disk.device}, the device behind {disk.name}: {disk.errors[0]}{more}"


def _device_stuck(disk: DiskSeen) -> str:
    stuck = disk.first.in_flight and disk.later.in_flight and disk.first.finished == disk.later.finished
    return f"dom0's {disk.device} does not finish {disk.later.in_flight} requests for {disk.name}" if stuck else ""


def _blkback_stuck(disk: DiskSeen) -> str:
    idle = disk.first.vbd == disk.later.vbd and not disk.later.in_flight
    return (
        f"the guest waits for {disk.waiting} requests to {disk.name}, and blkback does not take them"
        if disk.waiting and idle
        else ""
    )


def _not_connected(disk: DiskSeen) -> str:
    if disk.frontend == disk.backend == _CONNECTED:
        return ""
    frontend, backend = (_STATES.get(state, f"is in state {state}") for state in (disk.frontend, disk.backend))
    return f"{disk.name} is not connected: its frontend {frontend}, its backend {backend}"


def _guest_errors(disk: DiskSeen) -> str:
    if not disk.guest_errors:
        return ""
    return (
        f"the guest reports an error on {disk.name}, and dom0 reports none on {disk.device or 'its device'}: {disk.guest_errors[0]}"
    )


def _no_memory(disk: DiskSeen) -> str:
    count = disk.later.vbd.get("oo_req", 0)
    return f"blkback had no resources for {count} requests to {disk.name} (oo_req)" if count else ""


def _unused(disk: DiskSeen) -> str:
    """An HVM guest may use the emulated disk, whose requests blkback does not see."""
    asked = any(disk.later.vbd.get(name) for name in ("rd_req", "wr_req", "f_req"))
    return "" if asked or not disk.later.vbd else f"the guest sent blkback no request for {disk.name}"


RULES = (
    Rule("dom0's device fails", _dom0_errors),
    Rule("dom0's device stuck", _device_stuck),
    Rule("blkback stuck", _blkback_stuck),
    Rule("not connected", _not_connected, weak=True),
    Rule("only the guest reports errors", _guest_errors, weak=True),
    Rule("blkback lacks resources", _no_memory, weak=True),
    Rule("no request", _unused, weak=True),
)
