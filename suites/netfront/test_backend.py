# SPDX-License-Identifier: BSD-2-Clause
"""Backends that offer less, or more: the interface takes what there is, says so, and moves the data."""

from __future__ import annotations

import time

import pytest

from harness.guests.link import Link
from harness.guests.peer import Peer
from harness.oracles import frames
from harness.oracles.finding import finding
from harness.plugin.case_context import CaseContext
from harness.plugin.cells import Cell
from harness.plugin.fixtures import NewGuest

from .conftest import again, replug
from .test_offloads import SIZE

_NO_GSO = {"feature-gso-tcpv4": "0", "feature-gso-tcpv6": "0"}
# What a backend can do without, and which of the guest's offloads have to go with it.
LESS = {
    "no-gso": (_NO_GSO, ("tso", "lro")),
    "no-sg-no-gso": (_NO_GSO | {"feature-sg": "0"}, ("sg", "tso", "lro")),
    "no-csum": ({"feature-no-csum-offload": "1"}, ("tx", "rx")),
}
OFFERED, STREAMS = (1, 2, 4, 8), 3
VARIABLES = {1: (), 4: (("hw.xn.num_queues", "8"),)}
_QUEUES = "/sys/module/xen_netback/parameters/max_queues"


def test_backend_offers_less(link: Link, case: CaseContext) -> None:
    """D15: at a backend without GSO, scatter-gather or checksums the offloads go, no frame is too large, and data moves."""
    guest, ask = link.guest, link.guest.profile
    offers = {name: row for name, row in LESS.items() if ask.obeys_no_csum or "feature-no-csum-offload" not in row[0]}
    wrong = []
    for name, (keys, gone) in offers.items():
        replug(guest, keys, guest.profile.source("netfront"))
        link = again(guest, guest.profile.source("netfront"))
        shown = ask.offloads(guest.sh, link.interface)
        wrong += [f"{name}: {flag} is still on" for flag in gone if shown.get(flag)]
        with link.capture(case.directory / f"{name}.pcap", whole=True) as seen:
            up, down = link.upload(SIZE // 8), link.download(SIZE // 8)
        wrong += [f"{name}: {word}: {done.complaint}" for word, done in (("up", up), ("down", down)) if done.complaint]
        sent = frames.sent_by(seen, link.there)
        size = frames.largest(sent)
        case.metrics[name] = float(size)
        # What it takes itself is another matter: it tells the backend so by the same key on its own side.
        if "tso" in gone and size > link.family.mss:
            wrong.append(f"{name}: a frame from the guest carries {size} bytes, {link.family.mss} is the MSS")
        if "tx" in gone and (bad := frames.bad_checksums(sent)):
            wrong.append(f"{name}: {bad} of {len(sent)} frames from the guest have no whole checksum")
    assert not wrong, finding(
        test=f"the interface attached again to backends that offer less: {', '.join(offers)}",
        observed=wrong,
        expected="switches off what the backend does not offer, and does without",
        reference=f"{guest.profile.source('netfront')} (xn_query_features)",
    )


def streams(link: Link, count: int, size: int) -> list[str]:
    """``count`` connections at once to dom0, each of ``size`` bytes, then as many back; what did not arrive."""
    guest, ports = link.guest, range(6001, 6001 + count)
    guest.sh(f"dd if=/dev/urandom of=/tmp/fxh-stream bs=1024 count={size // 1024} 2>/dev/null")
    digest = guest.sh("fxh_digest < /tmp/fxh-stream").split()[0]
    nc = f"{link.nc(60)} {link.here}"
    peers = [Peer(link.host, ["recv", link.here, str(port), str(size)]) for port in ports]
    guest.sh(f"for p in {' '.join(map(str, ports))}; do {nc} $p < /tmp/fxh-stream > /dev/null & done; wait", 90)
    done = [peer.result(60) for peer in peers]
    wrong = [f"from the guest: {one.bytes} of {size} bytes, {one.error}" for one in done if one.md5 != digest]
    peers = [link.source(port + 100, size) for port in ports]
    script = (
        f"for p in {' '.join(str(port + 100) for port in ports)}; do {nc} $p < /dev/null | fxh_digest > /tmp/fxh-sum$p & done; wait"
    )
    came = guest.sh(f"{script}; cat /tmp/fxh-sum*; rm /tmp/fxh-sum*", 90).split()
    done = [peer.result(60) for peer in peers]
    wrong += [f"to the guest: {one.bytes} of {size} bytes, {one.error}" for one in done if one.error]
    if (whole := came.count(done[0].md5)) != count:
        wrong.append(f"to the guest: {whole} of {count} streams arrived as they were sent")
    return wrong


@pytest.mark.parametrize("vcpus", [1, 4])
def test_queues(booted: NewGuest, vcpus: int, cell: Cell, case: CaseContext) -> None:
    """D13: with 1, 2, 4 and 8 queues offered the guest connects as many as it can use, and streams at once all arrive."""
    guest = booted(vcpus=vcpus, variables=VARIABLES[vcpus])
    before = guest.host.transport.run(["cat", _QUEUES], check=False)
    if before.status:
        pytest.skip("needs Linux's netback, whose number of queues can be set; elsewhere: fxh run netfront -k test_queues")
    case.undo.append(lambda: guest.host.transport.run(["sh", "-c", f"echo {before.text.strip()} > {_QUEUES}"]))
    most = guest.profile.netfront_queues(vcpus, dict(VARIABLES[vcpus]))
    # Each is a detach and an attach, slow under emulation: of the control guest there the least and the most have to do.
    offers = OFFERED if cell.under_test or not guest.host.facts.emulated else (OFFERED[0], OFFERED[-1])
    wrong = []
    for offered in offers:
        guest.host.transport.run(["sh", "-c", f"echo {offered} > {_QUEUES}"])
        replug(guest, {}, guest.profile.source("netfront"))
        front = guest.host.xenstore.children(f"/local/domain/{guest.domid}/device/vif/0")
        queues = max(1, sum(name.startswith("queue-") for name in front))
        if queues != min(offered, most):
            wrong.append(f"{offered} queues offered: it connected {queues}, {min(offered, most)} were due")
    link = again(guest, guest.profile.source("netfront"))
    begun = time.monotonic()
    wrong += [f"{OFFERED[-1]} queues offered: {line}" for line in streams(link, STREAMS, SIZE // 4)]
    case.metrics["streams"] = round(time.monotonic() - begun, 2)
    assert not wrong, finding(
        test=f"{', '.join(map(str, offers))} queues for an interface of a guest with {vcpus} vCPUs, {STREAMS} TCP streams at once each way over the last",
        observed=wrong,
        expected="connects the queues that it can use and keeps each stream in order",
        reference=f"{guest.profile.source('netfront')} (multi-queue-num-queues)",
    )
