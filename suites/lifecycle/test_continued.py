# SPDX-License-Identifier: BSD-2-Clause
"""A guest that suspended and then continues in its own domain, because it was only copied or because the save failed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest

from harness.errors import CannotRun
from harness.guests import suspend
from harness.guests.clock import clock_offset
from harness.guests.guest import Guest
from harness.guests.host_pair import HostPair
from harness.guests.link import Link
from harness.oracles.finding import finding
from harness.plugin.case_context import CaseContext
from harness.plugin.cells import Cell
from harness.plugin.fixtures import Booted, NewGuest
from harness.plugin.worker_env import WorkerEnvironment

from .support import connected

SIZE = 1 << 20
# Seconds. Both clocks are read in whole seconds over a console.
SLACK = 3.0
# Seconds that a connection may stand still, and that dom0 sends data.
PATIENCE, LASTING = 120, 8
ROUNDS = 2


def assert_continues(
    guest: Guest, suspended: Callable[[Guest], object], test: str, case: CaseContext, *, moves: bool = False
) -> None:
    """Suspend the guest ``ROUNDS`` times during a transfer and a write to a file. Fail unless everything continues.

    The guest stays in its domain, unless it ``moves``.
    """
    link = Link(guest, interface=guest.prepared["interface"])
    case.undo.append(link.down)
    ask, domid = guest.os, guest.domid
    first, disks, offloads = clock_offset(guest), ask.disks(guest.sh), ask.offloads(guest.sh, link.interface)
    guest.sh("dd if=/dev/urandom of=/tmp/fxh-data bs=64k count=32 2>/dev/null; fxh_digest < /tmp/fxh-data > /tmp/fxh-sum")
    copy = "while [ ! -e /tmp/fxh-stop ]; do cp /tmp/fxh-data /tmp/fxh-copy; sync; sleep 1; done; echo > /tmp/fxh-stopped"
    guest.sh(f"( {copy} ) > /dev/null 2>&1 &")
    # Last, because it sends for LASTING seconds only.
    peer = link.source(6001, SIZE, lasting=LASTING, patience=3 * PATIENCE)
    case.undo.append(peer.stop)
    link.receive(6001, 4 * PATIENCE)
    assert link.wait_busy(SIZE // 4), "no data reaches the guest, so the case cannot interrupt a transfer"

    for _ in range(ROUNDS):
        suspended(guest)
        assert guest.sh("echo alive") == "alive", "the shell does not answer `echo alive` after the suspension"

    came, sent = link.came(PATIENCE), peer.result(60)
    jump = clock_offset(guest) - first
    guest.sh("echo > /tmp/fxh-stop; while [ ! -e /tmp/fxh-stopped ]; do sleep 1; done", 120)
    case.metrics |= {"bytes": float(sent.bytes), "seconds": sent.seconds, "jump": jump}
    wrong = []
    row = guest.state()
    has_moved = row is not None and row.domid != domid
    if row is None or has_moved != moves:
        wrong.append(f"domain {domid} became {row and row.domid}")
    if abs(jump) > SLACK:
        wrong.append(f"compared with dom0, the guest's clock is {jump:+.1f} s off")
    if lost := link.incomplete(sent, came):
        wrong.append(lost)
    if guest.sh("fxh_digest < /tmp/fxh-copy") != guest.sh("cat /tmp/fxh-sum"):
        wrong.append("a file that was written meanwhile has other content")
    if (now := ask.disks(guest.sh)) != disks:
        wrong.append(f"the guest's disks changed from {' '.join(disks)} to {' '.join(now)}")
    if (after := ask.offloads(guest.sh, link.interface)) != offloads:
        wrong.append(f"the offloads changed from {dict(offloads)} to {dict(after)}")
    assert not wrong, finding(
        test=f"{test}, {ROUNDS} times during a transfer to the guest and a write to a file",
        observed=wrong,
        expected=f"the guest continues in {'another' if moves else 'its'} domain: same connection, disks, settings and time",
        reference=f"xen tools/xl/xl_saverestore.c, save_domain(); xen 87a067fd8f; {guest.os.source('suspend')}",
    )


@pytest.mark.parametrize("vcpus", [1, 2])
def test_checkpointed(booted: Booted, vcpus: int, case: CaseContext) -> None:
    """A guest that `xl save -c` copies during a transfer and a write continues in its domain without a loss.

    Kind of bug: the resume after a suspension that was canceled, in which devices and event channels stay, unlike after a restore.

    Source: xen tools/xl/xl_saverestore.c, save_domain(); sys/dev/xen/control/control.c, xctrl_suspend() (xen_suspend_cancelled)
    Catches: xl save -c of a guest without a device model (xen 87a067fd8f, 4.15); three bugs of the resume (FreeBSD-EN-17:05.xen)
    """
    guest = booted(connected, vcpus=vcpus)
    assert_continues(guest, suspend.continued, f"xl save -c of a guest with vcpus={vcpus}", case)


@pytest.mark.parametrize("vcpus", [1, 2])
def test_migrated_live(booted: Booted, vcpus: int, case: CaseContext) -> None:
    """A guest that `xl migrate` moves live to its own host, during a transfer and a write, continues without a loss.

    Kind of bug: pages that the guest changes while they are copied, unlike in a save, for which it is suspended all the time.

    Source: xen tools/xl/xl_migrate.c; tools/libs/guest/xg_sr_save.c, send_memory_live(); sys/dev/xen/control/control.c, xctrl_suspend()
    """
    guest = booted(connected, vcpus=vcpus)
    try:
        assert_continues(guest, suspend.migrated, f"xl migrate to the same host of a guest with vcpus={vcpus}", case, moves=True)
    except CannotRun as exc:
        pytest.skip(exc.reason)


@pytest.mark.needs(types=("pvh",))
def test_migrated_between_hosts(
    new_guest: NewGuest, host_pair: HostPair, worker_env: WorkerEnvironment, cell: Cell, case: CaseContext
) -> None:
    """A guest that `xl migrate` moves live to another host and back, during a transfer and a write, continues without a loss.

    Kind of bug: state that only the old host had: its event channels, grants, clock, entries of a bridge.

    Source: xen tools/xl/xl_migrate.c; sys/dev/xen/control/control.c, xctrl_suspend(); sys/dev/xen/netfront/netfront.c, netfront_resume()
    """
    source = worker_env.source(cell)
    # All its memory passes, each way, and pages that change meanwhile pass again.
    guest = new_guest(memory=min(source.memory, cell.guest_os.balloon_limits.small))
    try:
        disks = [host_pair.disk(disk) for disk in source.disks]
        vifs = [replace(vif, bridge=host_pair.bridge) for vif in guest.config.vifs]
        guest.reconfigure(disks=tuple(disks), vifs=tuple(vifs)).boot()
        guest.prepared = connected(guest)
        assert_continues(guest, host_pair.move, "xl migrate to another host and back", case, moves=True)
    except CannotRun as exc:
        pytest.skip(exc.reason)


def test_failed_save(booted: Booted, case: CaseContext) -> None:
    """A guest whose `xl save` fails after it suspended continues in its domain without a loss.

    Kind of bug: as above, for the way that a failed migration or a full disk takes.

    Source: xen tools/xl/xl_saverestore.c, save_domain(); sys/dev/xen/control/control.c, xctrl_suspend() (xen_suspend_cancelled)
    Catches: devices that stay suspended after a failed save or migration (FreeBSD-EN-17:05.xen)
    """
    guest = booted(connected)
    assert_continues(guest, suspend.failed, "xl save to a file that cannot grow", case)
