# SPDX-License-Identifier: BSD-2-Clause
"""Finds out why a disk of a guest failed: blkback's counters, the device behind it, dom0's kernel log, and the guest's own counters.

blkback counts from the moment a disk is attached, so no earlier read is needed.
"""

from __future__ import annotations

import contextlib
import logging
from dataclasses import replace

from harness import trace
from harness.deadline import Deadline
from harness.errors import HarnessError, InfrastructureError
from harness.guests.explained import Explained
from harness.guests.guest import Guest
from harness.oracles import disk_causes
from harness.oracles.disk_causes import DiskSeen
from harness.safetext import plain

# Arguments: domid, seconds between the two readings. The shell reads the files itself: under emulation each process takes 40 ms.
# Sources: drivers/block/xen-blkback/xenbus.c (statistics), Documentation/block/stat.rst, docs/misc/xenstore-paths.
SCRIPT = """
read_disks() {
    for d in /sys/bus/xen-backend/devices/vbd-"$1"-*; do
        cd "$d" 2>/dev/null || continue
        echo "== $2 ${d##*/}"
        for f in mode physical_device statistics/*; do read -r v < "$f" && echo "$f $v"; done
        read -r v < physical_device && cd -P /sys/dev/block/"$v" && echo "device ${PWD##*/}" && read -r v < stat && echo "stat $v"
    done
}
read_disks "$1" first; sleep "$2"; read_disks "$1" later
echo "== xenstore"
xenstore-ls -f /local/domain/"$1"/device/vbd; xenstore-ls -f /local/domain/0/backend/vbd/"$1"
read -r v < /proc/uptime; echo "== uptime"; echo "$v"
echo "== dmesg"; dmesg | tail -n 200
"""
# Seconds between two readings of dom0, for one of them, and for the guest's reading.
_BETWEEN, _DOM0, _GUEST = 0.5, 4.0, 4.0
log = logging.getLogger("fxh.evidence")


def explain(guest: Guest, reason: str, deadline: Deadline, age: float) -> Explained:
    """Read the disks' counters and write them to the guest's directory. Never raises a HarnessError.

    ``reason`` is the finding so far: the counters of the disks that it names are part of the result. dom0's messages of the last
    ``age`` seconds count.
    """
    with trace.step(trace.EVIDENCE, "explain the disks", guest.name):
        report: list[str] = []
        try:
            found = _explain(guest, reason, deadline, age, report)
        except Exception as exc:  # a defect here must not hide the failure
            log.warning("%s: no counters of its disks: %s: %s", guest.name, type(exc).__name__, exc)
            report.append(f"not read: {exc}")
            found = Explained()
        with contextlib.suppress(OSError):
            (guest.directory / f"disks-{guest.name}.txt").write_text("\n".join([*found.all_rows, "", *report]) + "\n")
        return found


def _explain(guest: Guest, reason: str, deadline: Deadline, age: float, report: list[str]) -> Explained:
    words = ["sh", "-c", SCRIPT, "sh", str(guest.domid), str(_BETWEEN)]
    text = plain(guest.host.transport.run(words, deadline.capped(_DOM0), check=False).text)
    report.append(text)
    uptime = disk_causes.uptime(text)
    seen = disk_causes.disks(text, lambda number: _name(guest, number), max(0.0, uptime - age))
    try:
        seen = _with_guest(guest, seen, deadline, report)
    except HarnessError as exc:
        report.append(f"== {guest.name}\nnot read: {exc.message}")
    cause = disk_causes.cause(seen, reason)
    shown = [disk for disk in seen if disk_causes.named(disk, reason) or disk.name in cause.split()]
    return Explained(cause, tuple(disk.line for disk in shown) if cause else ())


def _with_guest(guest: Guest, seen: tuple[DiskSeen, ...], deadline: Deadline, report: list[str]) -> tuple[DiskSeen, ...]:
    """The disks with the guest's own view of them. Raises HarnessError if the guest does not answer."""
    command = guest.os.disk_counters
    if not command:
        raise InfrastructureError(f"the harness knows no counters of {guest.os.title}")
    if guest.console.death is not None:
        raise InfrastructureError("the guest is dead")
    text = plain(guest.session.run(command, deadline.capped(_GUEST), check=False).text)
    report.append(f"== {guest.name}\n{text}")
    waiting, messages = guest.os.requests_in_flight(text), disk_causes.kernel_errors(text)
    return tuple(
        replace(
            disk,
            waiting=waiting.get(disk.name, 0),
            guest_errors=tuple(line for line in messages if disk_causes.named(disk, line)),
        )
        for disk in seen
    )


def _name(guest: Guest, number: int) -> str:
    try:
        return guest.os.disk_name(str(number))
    except (HarnessError, ValueError):
        return f"vdev {number}"
