# SPDX-License-Identifier: BSD-2-Clause
"""A transfer in whose middle something happens: the vif goes down, the interface goes, the guest is saved and restored."""

from __future__ import annotations

import pytest

from harness.guests import suspend
from harness.guests.link import BUSY, Link
from harness.guests.peer import Listener
from harness.oracles.finding import finding
from harness.plugin.case_context import CaseContext

from .conftest import again, replug
from .test_offloads import SIZE, arrived, switch

# Once dom0 has sent so many bytes over the vif. Within dom0: a transfer does not wait for a command that comes over ssh.
INTERRUPTION = BUSY + 'ip link set "$1" down; sleep 3; ip link set "$1" up; echo "up again"'


@pytest.mark.formerly("netfront/test_traffic::test_vif_down_and_up")
def test_vif_down_and_up(link: Link, case: CaseContext) -> None:
    """D14: dom0 takes the vif down for a moment in the middle of a transfer: the transfer goes on and ends."""
    interruption = Listener(
        link.host.transport.open(["sh", "-c", INTERRUPTION, "sh", link.vif, str(SIZE // 16)]), "the interruption"
    )
    case.undo.append(interruption.stream.close)

    # TCP tries again after as long as the silence lasted, so 12 seconds leave it half of them.
    done = link.download(SIZE, 150, lasting=12)

    case.metrics |= {"bytes": float(done.bytes), "seconds": done.seconds}
    interruption.until(rb"up again", 1)
    arrived(done, f"{done.bytes} bytes while the vif goes down for 3 s", link)


@pytest.mark.parametrize(
    "busy",
    [
        pytest.param(False, id="idle", marks=pytest.mark.formerly("netfront/test_traffic::test_detach_and_attach")),
        pytest.param(True, id="busy"),
    ],
)
def test_detach_and_attach(link: Link, busy: bool, case: CaseContext) -> None:
    """D14: the interface is taken away, at rest or in the middle of a transfer, and given again: it comes back and works."""
    source = link.guest.profile.source("netfront")
    if busy:
        peer = link.source(6001, SIZE, lasting=60)
        case.undo.append(peer.stop)
        link.guest.sh(f"( {link.nc(60)} {link.here} 6001 < /dev/null ) > /dev/null 2>&1 &")
        assert link.wait_busy(SIZE // 4), "no data goes to the guest"
    replug(link.guest, {}, source)
    if busy:
        peer.stop()

    back = again(link.guest, source)
    arrived(back.upload(SIZE // 4), "data after the interface came back", back)


def test_saved_in_the_middle(link: Link, case: CaseContext) -> None:
    """D14: saved and restored in the middle of a transfer: the connection goes on, and the interface is set as it was."""
    guest, ask = link.guest, link.guest.profile
    switch(link, tso=False)
    before = ask.offloads(guest.sh, link.interface)
    # TCP tries again after as long as the silence lasted: twice the time of the journey, and a slow machine's at that.
    patience = 120
    peer = link.source(6001, SIZE, lasting=20, patience=3 * patience)
    case.undo.append(peer.stop)
    guest.sh(f"( {link.nc(4 * patience)} {link.here} 6001 < /dev/null | fxh_digest > /tmp/fxh-came ) > /dev/null 2>&1 &")
    assert link.wait_busy(SIZE // 4), "no data goes to the guest"

    suspend.through_a_file(guest)

    came, stood = link.came(patience), ""
    if not came:
        # Where it is dom0 that does not hear it, that is mended by this; its vif has another name since it was restored.
        up = Link(guest, interface=link.interface).wait_up()
        stood = f"; {patience} s after it was restored nothing moved, an echo of dom0 {'came' if up else 'did not come'} then"
        came = link.came(patience)
    sent = peer.result(60)
    after = ask.offloads(guest.sh, link.interface)
    case.metrics |= {"bytes": float(sent.bytes), "seconds": sent.seconds, "stood still": float(bool(stood))}
    wrong = []
    if sent.error or came != sent.md5:
        wrong.append(
            f"of {sent.bytes} bytes ({sent.error or 'all sent'}) arrived what has digest {came!r}, {sent.md5} is right{stood}"
        )
    if after != before:
        wrong.append(f"its offloads are {dict(after)}, they were {dict(before)}")
    assert not wrong, finding(
        test="xl save and xl restore in the middle of a transfer to the guest, TSO switched off before",
        observed=wrong,
        expected="goes on with the connection, and leaves the interface as it was set",
        reference=f"{guest.profile.source('netfront')}, netfront_resume()",
    )
