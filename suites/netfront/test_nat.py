# SPDX-License-Identifier: BSD-2-Clause
"""Address translation by pf in the guest: nat, rdr, and pf on the guest's own traffic."""

from __future__ import annotations

import pytest

from harness.guests.link import Link
from harness.oracles import frames
from harness.oracles.finding import finding
from harness.plugin.case_context import CaseContext

from .support import SIZE, complaints

RULES = (
    "nat on {far.interface} inet from {near.here} to any -> {far.there}",
    "rdr on {near.interface} inet proto tcp from any to {near.there} port 5001:5100 -> {far.here}",
    "pass all flags S/SA modulate state",
)


@pytest.mark.needs(os="freebsd")
@pytest.mark.parametrize("backend_tx", ["off", "on"])
def test_pf(sides: tuple[Link, Link], case: CaseContext, backend_tx: str) -> None:
    """Data through pf's nat and rdr, and the guest's own data, arrives complete and with full checksums.

    With ``tx on`` dom0 gives the guest packets without a full checksum, as in test_forwarding, and a broken transfer takes long.

    Source: sys/dev/xen/netfront/netfront.c; sys/netpfil/pf/pf.c
    Catches: bad checksums after pf (FreeBSD bugs 154428, 193579, 198868, fixed by r289316); csum_blank ignored (bug 197344)
    """
    near, far = sides
    guest = near.guest
    if guest.run("kldstat -qm pf || kldload pf", check=False).status:
        pytest.skip("needs a kernel with pf; elsewhere: fxh run netfront -k test_pf --image IMAGE (images/kernels/XENA has it)")
    lines = " ".join(f"'{rule.format(near=near, far=far)}'" for rule in RULES)
    guest.sh(f"printf '%s\\n' {lines} > /tmp/pf.conf; pfctl -ef /tmp/pf.conf")
    for side in (near, far):
        side.dom0("ethtool", "-K", side.vif, "tx", backend_tx)
    errors = near.checksum_errors() + far.checksum_errors()

    with far.capture(case.directory / "far.pcap") as seen:
        done = {"through nat": near.forwarded(far, SIZE // 16)}
        if backend_tx == "off":
            done["through rdr"] = near.forwarded(far, SIZE // 16, to=near.there)
            done["from the guest"] = near.upload(SIZE // 4)
            done["to the guest"] = near.download(SIZE // 4)

    bad = near.checksum_errors() + far.checksum_errors() - errors
    case.metrics |= {"bad checksums": float(bad), **{way: transfer.seconds for way, transfer in done.items()}}
    wrong = complaints(done)
    if bad:
        wrong.append(f"the two ends threw {bad} segments away for their checksums")
    if frames.sent_by(seen, near.here):
        wrong.append(f"frames with the source {near.here} left the guest without translation")
    assert not wrong, finding(
        test=f"pf with nat, rdr and modulate state; tx is {backend_tx} on dom0's vifs",
        observed=wrong,
        expected="pf translates every packet, and every packet leaves with a full checksum",
        reference=f"{guest.os.source('netfront')}; sys/netpfil/pf/pf.c; FreeBSD bugs 154428, 193579, 198868 (r289316), 197344",
    )
