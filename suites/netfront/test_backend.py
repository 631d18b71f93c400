# SPDX-License-Identifier: BSD-2-Clause
"""Backends that offer fewer features or more queues: the interface adapts, reports it, and moves the data."""

from __future__ import annotations

import time

import pytest

from harness.guests.link import Link
from harness.oracles import frames
from harness.oracles.finding import finding
from harness.plugin.case_context import CaseContext
from harness.plugin.cells import Cell
from harness.plugin.fixtures import Booted

from .support import SIZE, complaints, link_after_reattach, reattach_interface

_NO_GSO = {"feature-gso-tcpv4": "0", "feature-gso-tcpv6": "0"}
# Xenstore keys of a backend that lacks features, and the guest's offloads that have to go off with them.
LESS = {
    "no-gso": (_NO_GSO, ("tso", "lro")),
    "no-sg-no-gso": (_NO_GSO | {"feature-sg": "0"}, ("sg", "tso", "lro")),
    "no-csum": ({"feature-no-csum-offload": "1"}, ("tx", "rx")),
}
OFFERED, STREAMS = (1, 2, 4, 8), 3
VARIABLES = {1: (), 4: (("hw.xn.num_queues", "8"),)}
_QUEUES = "/sys/module/xen_netback/parameters/max_queues"


def test_backend_offers_less(link: Link, case: CaseContext) -> None:
    """With a backend without GSO, scatter-gather or checksums the guest switches its offloads off, and data arrives.

    Source: sys/dev/xen/netfront/netfront.c, xn_query_features(); Linux drivers/net/xen-netfront.c
    """
    guest, ask = link.guest, link.guest.os
    offers = {name: row for name, row in LESS.items() if ask.obeys_no_csum or "feature-no-csum-offload" not in row[0]}
    wrong = []
    for name, (keys, gone) in offers.items():
        reattach_interface(guest, keys, guest.os.source("netfront"))
        link = link_after_reattach(guest, guest.os.source("netfront"))
        shown = ask.offloads(guest.sh, link.interface)
        wrong += [f"{name}: {flag} is still on" for flag in gone if shown.get(flag)]
        with link.capture(case.directory / f"{name}.pcap", whole=True) as seen:
            up, down = link.upload(SIZE // 8), link.download(SIZE // 8)
        wrong += [f"{name}: {line}" for line in complaints({"to dom0": up, "from dom0": down})]
        sent = frames.sent_by(seen, link.there)
        size = frames.largest(sent)
        case.metrics[name] = float(size)
        # Only frames from the guest count: for its own receive side the guest writes the same key into the frontend's directory.
        if "tso" in gone and size > link.family.mss:
            wrong.append(f"{name}: a frame from the guest carries {size} bytes, more than the MSS of {link.family.mss}")
        if "tx" in gone and (bad := frames.bad_checksums(sent)):
            wrong.append(f"{name}: {bad} of {len(sent)} frames from the guest have an incomplete checksum")
    assert not wrong, finding(
        test=f"the interface attached again to backends that offer less: {', '.join(offers)}",
        observed=wrong,
        expected="the guest switches off each offload that the backend does not offer, and all data arrives",
        reference=f"{guest.os.source('netfront')} (xn_query_features)",
    )


def transfer_streams(link: Link, count: int, size: int) -> list[str]:
    """Send ``size`` bytes over each of ``count`` simultaneous connections to dom0, then from dom0; return what failed."""
    guest, ports = link.guest, range(6001, 6001 + count)
    guest.sh(f"dd if=/dev/urandom of=/tmp/fxh-stream bs=1024 count={size // 1024} 2>/dev/null")
    digest = guest.sh("fxh_digest < /tmp/fxh-stream").split()[0]
    nc = f"{link.nc(60)} {link.here}"
    peers = [link.peer("recv", port, size) for port in ports]
    guest.sh(f"for p in {' '.join(map(str, ports))}; do {nc} $p < /tmp/fxh-stream > /dev/null & done; wait", 90)
    done = [peer.result(60) for peer in peers]
    wrong = [
        f"from the guest: {one.bytes} of {size} bytes arrived{f' ({one.error})' if one.error else ', or with other content'}"
        for one in done
        if one.md5 != digest
    ]
    peers = [link.source(port + 100, size) for port in ports]
    script = (
        f"for p in {' '.join(str(port + 100) for port in ports)}; do {nc} $p < /dev/null | fxh_digest > /tmp/fxh-sum$p & done; wait"
    )
    came = guest.sh(f"{script}; cat /tmp/fxh-sum*; rm /tmp/fxh-sum*", 90).split()
    done = [peer.result(60) for peer in peers]
    wrong += [f"to the guest: {one.bytes} of {size} bytes were sent ({one.error})" for one in done if one.error]
    if (whole := came.count(done[0].md5)) != count:
        wrong.append(f"to the guest: {whole} of {count} streams arrived as they were sent")
    return wrong


@pytest.mark.parametrize("vcpus", [1, 4])
def test_queues(booted: Booted, vcpus: int, cell: Cell, case: CaseContext) -> None:
    """With 1, 2, 4 and 8 queues offered the guest connects as many as it can use, and simultaneous streams arrive complete.

    Source: sys/dev/xen/netfront/netfront.c (multi-queue-num-queues); Linux drivers/net/xen-netfront.c
    """
    guest = booted(vcpus=vcpus, variables=VARIABLES[vcpus])
    before = guest.host.transport.run(["cat", _QUEUES], check=False)
    if before.status:
        pytest.skip("needs Linux's netback, whose number of queues can be set; elsewhere: fxh run netfront -k test_queues")
    # netback's limit is the host's, so an offer is a key of this backend. The limit changes only if it refuses an offer.
    if int(before.text) < max(OFFERED):
        case.undo.append(lambda: guest.host.transport.run(["sh", "-c", f"echo {before.text.strip()} > {_QUEUES}"]))
        guest.host.transport.run(["sh", "-c", f"echo {max(OFFERED)} > {_QUEUES}"])
    most = guest.os.netfront_queues(vcpus, dict(VARIABLES[vcpus]))
    # Each offer costs a detach and an attach, which are slow under emulation: the control guest tries only the first and the last.
    offers = OFFERED if cell.under_test or not guest.host.facts.emulated else (OFFERED[0], OFFERED[-1])
    wrong = []
    for offered in offers:
        reattach_interface(guest, {"multi-queue-max-queues": str(offered)}, guest.os.source("netfront"))
        front = guest.host.xenstore.children(f"/local/domain/{guest.domid}/device/vif/0")
        queues = max(1, sum(name.startswith("queue-") for name in front))
        if queues != min(offered, most):
            wrong.append(f"{offered} queues offered: the guest connected {queues} instead of {min(offered, most)}")
    link = link_after_reattach(guest, guest.os.source("netfront"))
    begun = time.monotonic()
    wrong += [f"{OFFERED[-1]} queues offered: {line}" for line in transfer_streams(link, STREAMS, SIZE // 4)]
    case.metrics["streams"] = round(time.monotonic() - begun, 2)
    assert not wrong, finding(
        test=f"{', '.join(map(str, offers))} queues offered to a guest with {vcpus} vCPUs, "
        f"then {STREAMS} TCP streams at once in each direction over the last",
        observed=wrong,
        expected="the guest connects the queues that it can use, and each stream arrives complete and in order",
        reference=f"{guest.os.source('netfront')} (multi-queue-num-queues)",
    )
