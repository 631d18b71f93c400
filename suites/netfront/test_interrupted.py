# SPDX-License-Identifier: BSD-2-Clause
"""An interruption during a transfer: the vif goes down, the interface is detached, or the guest is saved and restored."""

from __future__ import annotations

import pytest

from harness.guests import suspend
from harness.guests.link import BUSY, Link
from harness.guests.peer import Listener
from harness.oracles.finding import finding
from harness.plugin.case_context import CaseContext

from .support import SIZE, assert_transferred, link_after_reattach, reattach_interface, set_offloads

# Runs in dom0 once dom0 has sent that many bytes over the vif, because a transfer does not wait for a command over ssh.
INTERRUPTION = BUSY + 'ip link set "$1" down; sleep 3; ip link set "$1" up; echo "up again"'
NO_DATA = "no data reaches the guest, so the case cannot interrupt a transfer"


@pytest.mark.formerly("netfront/test_traffic::test_vif_down_and_up")
def test_vif_down_and_up(link: Link, case: CaseContext) -> None:
    """A transfer continues and ends after dom0 took the vif down for 3 s.

    Source: sys/dev/xen/netfront/netfront.c; Linux drivers/net/xen-netfront.c
    """
    interruption = Listener(
        link.host.transport.open(["sh", "-c", INTERRUPTION, "sh", link.vif, str(SIZE // 16)]), "the interruption"
    )
    case.undo.append(interruption.stream.close)

    # TCP retransmits after a time as long as the silence, so 12 s of sending leave it half of them.
    done = link.download(SIZE, 150, lasting=12)

    case.metrics |= {"bytes": float(done.bytes), "seconds": done.seconds}
    interruption.until(rb"up again", 1)
    assert_transferred(done, f"{done.bytes} bytes to the guest, with the vif down for 3 s meanwhile", link)


@pytest.mark.parametrize(
    "busy",
    [
        pytest.param(False, id="idle", marks=pytest.mark.formerly("netfront/test_traffic::test_detach_and_attach")),
        pytest.param(True, id="busy"),
    ],
)
def test_detach_and_attach(link: Link, busy: bool, case: CaseContext) -> None:
    """An interface that is detached, idle or during a transfer, and attached again comes back and works.

    Source: sys/dev/xen/netfront/netfront.c; Linux drivers/net/xen-netfront.c
    """
    source = link.guest.os.source("netfront")
    if busy:
        peer = link.source(6001, SIZE, lasting=60)
        case.undo.append(peer.stop)
        link.guest.sh(f"( {link.nc(60)} {link.here} 6001 < /dev/null ) > /dev/null 2>&1 &")
        assert link.wait_busy(SIZE // 4), NO_DATA
    reattach_interface(link.guest, {}, source)
    if busy:
        peer.stop()

    back = link_after_reattach(link.guest, source)
    assert_transferred(back.upload(SIZE // 4), f"{SIZE // 4} bytes to dom0 over an interface that was attached again", back)


def test_saved_in_the_middle(link: Link, case: CaseContext) -> None:
    """If the guest is saved and restored during a transfer, the connection continues and the offloads keep their settings.

    Source: sys/dev/xen/netfront/netfront.c, netfront_resume(); Linux drivers/net/xen-netfront.c
    Catches: offloads that are switched on again on restore (planted); a write outside the event channel mask on resume
        (FreeBSD 4ece79968e70, D43928)
    """
    guest, ask = link.guest, link.guest.os
    set_offloads(link, tso=False)
    before = ask.offloads(guest.sh, link.interface)
    # Seconds. TCP retransmits after a time as long as the silence: twice the time of save and restore, on a slow machine.
    patience = 120
    peer = link.source(6001, SIZE, lasting=20, patience=3 * patience)
    case.undo.append(peer.stop)
    link.receive(6001, 4 * patience)
    assert link.wait_busy(SIZE // 4), NO_DATA

    suspend.through_a_file(guest)

    came, stalled = link.came(patience), ""
    if not came:
        # Traffic from dom0 helps if dom0 does not hear the guest. The vif has another name since the restore.
        up = Link(guest, interface=link.interface).wait_up()
        stalled = f"; nothing moved for {patience} s after the restore, then an echo request was {'' if up else 'not '}answered"
        came = link.came(patience)
    sent = peer.result(60)
    after = ask.offloads(guest.sh, link.interface)
    case.metrics |= {"bytes": float(sent.bytes), "seconds": sent.seconds, "stood still": float(bool(stalled))}
    wrong = []
    if lost := link.incomplete(sent, came):
        wrong.append(f"{lost}{stalled}")
    if after != before:
        wrong.append(f"the offloads changed from {dict(before)} to {dict(after)}")
    assert not wrong, finding(
        test="xl save and xl restore during a transfer to the guest, with TSO switched off before",
        observed=wrong,
        expected="the connection continues and the interface keeps its settings",
        reference=f"{guest.os.source('netfront')}, netfront_resume()",
    )
