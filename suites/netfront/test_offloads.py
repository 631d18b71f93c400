# SPDX-License-Identifier: BSD-2-Clause
"""Segmentation and checksums: frame sizes prove TSO, the peer proves checksums, digests prove content."""

from __future__ import annotations

import pytest

from harness.guests.link import IPV4, Link, Transfer
from harness.oracles import frames
from harness.oracles.finding import finding
from harness.plugin.case_context import CaseContext

from .conftest import families

SIZE = 1 << 20


def arrived(transfer: Transfer, asked: str, link: Link) -> None:
    """All of it, as it was sent."""
    assert not transfer.complaint, finding(
        test=asked,
        observed=transfer.complaint,
        expected="moves every byte, in seconds",
        reference=link.guest.profile.source("netfront"),
    )


def switch(link: Link, **flags: bool) -> None:
    ask = link.guest.profile
    # Linux refuses TSO while scatter-gather is off.
    strict = ask.independent_offloads
    for name, on in flags.items():
        link.guest.run(ask.offload_command(link.interface, name, on), 90, check=strict)


@families("link", "netfront/test_offloads::test_content_both_ways")
def test_content_both_ways(link: Link, case: CaseContext) -> None:
    """D1: a megabyte each way arrives as it was sent, and dom0 threw nothing away for its checksum."""
    errors = link.checksum_errors()

    up = link.upload(SIZE)
    down = link.download(SIZE)

    case.metrics |= {"up": up.seconds, "down": down.seconds}
    arrived(up, f"{SIZE} bytes over TCP, {link.family.name}, from the guest to dom0", link)
    arrived(down, f"{SIZE} bytes over TCP, {link.family.name}, from dom0 to the guest", link)
    bad = link.checksum_errors() - errors
    assert bad == 0, f"dom0 threw {bad} segments away for their checksums"


def test_segmentation_is_used(link: Link, case: CaseContext) -> None:
    """D1: a guest that says TSO is on sends segments larger than the MSS to a backend that takes them."""
    ask = link.guest.profile
    shown = ask.offloads(link.guest.sh, link.interface).get("tso", False)
    backend = link.host.xenstore.tree(f"/local/domain/0/backend/vif/{link.guest.domid}/0")
    offered = any(path.endswith("/feature-gso-tcpv4") and value == "1" for path, value in backend.items())

    with link.capture(case.directory / "upload.pcap") as seen:
        done = link.upload(SIZE)

    arrived(done, "a megabyte from the guest", link)
    sent = frames.sent_by(seen, link.there)
    size = frames.largest(sent)
    case.metrics |= {"frames": float(len(sent)), "largest payload": float(size)}
    assert shown, "the guest does not say that TSO is on"
    assert offered, "the backend offers no feature-gso-tcpv4"
    assert size > link.family.mss, finding(
        test="1 MiB over TCP to dom0, TSO shown as on, feature-gso-tcpv4 offered by the backend",
        observed=f"the largest of {len(sent)} frames carries {size} bytes: every segment was cut in the guest",
        expected=f"hands over segments of many times {link.family.mss} bytes",
        reference=f"{link.guest.profile.source('netfront')} (both IFCAP_TSO4 and CSUM_TSO in if_hwassist are needed)",
    )


def test_segmentation_can_be_switched_off(link: Link, case: CaseContext) -> None:
    """D2: with -tso no frame is larger than the MSS."""
    switch(link, tso=False)

    with link.capture(case.directory / "upload.pcap") as seen:
        done = link.upload(SIZE // 4)

    arrived(done, "data with TSO off", link)
    assert not link.guest.profile.offloads(link.guest.sh, link.interface).get("tso", False), "TSO reads back as on"
    size = frames.largest(frames.sent_by(seen, link.there))
    assert 0 < size <= link.family.mss, f"TSO is off, and a frame carries {size} bytes"


def test_segments_are_joined(link: Link, case: CaseContext) -> None:
    """D5: a guest that says LRO is on gives its IP fewer packets than it got frames, where dom0 sends single segments."""
    ask = link.guest.profile
    # Linux calls it GRO, and does it for every driver of this kind.
    shown = ask.offloads(link.guest.sh, link.interface).get("lro", True)
    link.dom0("ethtool", "-K", link.vif, "tso", "off", "gso", "off")
    before = ask.received(link.guest.sh, link.interface)

    done = link.download(SIZE)

    taken, given = (after - first for first, after in zip(before, ask.received(link.guest.sh, link.interface), strict=True))
    arrived(done, "a megabyte from dom0, in segments of the MSS", link)
    case.metrics |= {"frames": float(taken), "packets": float(given)}
    assert shown, "the guest does not say that LRO is on"
    assert taken >= SIZE // link.family.mss, f"a megabyte came in {taken} frames: dom0 does not send single segments"
    # A frame or two are ARP's.
    assert given < taken - taken // 10, finding(
        test="1 MiB over TCP from dom0 in single segments, LRO shown as on",
        observed=f"IP got {given} packets of {taken} frames: segments are not joined",
        expected="joins what follows each other in one interrupt",
        reference=f"{link.guest.profile.source('netfront')} (tcp_lro_init() is called there alone, and xn_rxeof() goes by lro_cnt)",
    )


# Linux's netfront cannot switch this off.
@pytest.mark.needs(os="freebsd")
@families("link", "netfront/test_offloads::test_checksums_by_the_guest")
def test_checksums_by_the_guest(link: Link, case: CaseContext) -> None:
    """D3: with -txcsum the guest fills checksums in itself: every frame on the vif has a good one.

    By IPv6 it has to do so as it is: netfront offers to leave out those of IPv4 alone (create_netdev(), XN_CSUM_FEATURES).
    """
    asked = "IPv6, of which netfront leaves nothing to its backend"
    if link.family is IPV4:
        asked = "IPv4, TXCSUM off"
        switch(link, tx=False)

    with link.capture(case.directory / "upload.pcap", whole=True) as seen:
        done = link.upload(SIZE // 4)

    arrived(done, f"data over {asked}", link)
    sent = frames.sent_by(seen, link.there)
    bad = frames.bad_checksums(sent)
    case.metrics |= {"frames": float(len(sent)), "bad": float(bad)}
    assert sent, "no frame was captured"
    assert bad == 0, finding(
        test=f"data to dom0 over {asked}",
        observed=f"{bad} of {len(sent)} frames have a wrong TCP checksum on the vif",
        expected="computes the checksum itself",
        reference=link.guest.profile.source("netfront"),
    )


@pytest.mark.needs(os="freebsd")
@pytest.mark.parametrize(("flag", "key", "value"), [("rx", "feature-no-csum-offload", "1"), ("lro", "feature-gso-tcpv4", "0")])
def test_backend_is_told(link: Link, flag: str, key: str, value: str, case: CaseContext) -> None:
    """D4 D5: -rxcsum and -lro reset the interface and tell the backend; the link is back within 30 s."""
    path = f"/local/domain/{link.guest.domid}/device/vif/0/{key}"

    switch(link, **{flag: False})

    assert link.wait_up(30), f"the link is not back 30 s after -{flag}"
    told = link.host.xenstore.read(path)
    assert (told or "0") == value, f"{key} is {told!r}, -{flag} has to make it {value}"
    with link.capture(case.directory / "download.pcap") as seen:
        done = link.download(SIZE // 4)
    arrived(done, f"data with -{flag}", link)
    if flag == "lro":
        size = frames.largest(frames.sent_by(seen, link.here))
        assert size <= link.family.mss, f"LRO is off, and dom0 sends frames of {size} bytes"


def test_every_combination(link: Link, case: CaseContext) -> None:
    """D6: all combinations of the offloads, twice: none hangs, none loses data, and each reads back as it was set."""
    ask = link.guest.profile
    told = dict(ask.offloads(link.guest.sh, link.interface))
    names, wrong = sorted(told), []
    combinations = 2 ** len(names)
    # Under emulation once: it is long as it is.
    passes = 1 if link.host.facts.emulated else 2
    for n in [*range(combinations)] * passes:
        # Gray code: one flag changes from one combination to the next.
        wanted = {name: bool((n ^ n >> 1) >> bit & 1) for bit, name in enumerate(names)}
        said = " ".join(f"{'' if on else '-'}{name}" for name, on in wanted.items())
        # What was asked for last, not what is shown: Linux keeps the wish for what it cannot do now.
        switch(link, **{name: on for name, on in wanted.items() if told[name] != on})
        told = wanted
        if not link.wait_up(30):
            wrong.append(f"{said}: the link does not come back within 30 s")
            continue
        shown = ask.offloads(link.guest.sh, link.interface)
        # Linux takes TSO back where scatter-gather or checksums are off (netdev_fix_features).
        for name, on in wanted.items():
            if shown.get(name) and not on:
                wrong.append(f"{said}: {name} reads back as on")
            if ask.independent_offloads and on and not shown.get(name):
                wrong.append(f"{said}: {name} reads back as off")
        for word, done in (("up", link.upload(64 << 10)), ("down", link.download(64 << 10))):
            if done.complaint:
                wrong.append(f"{said}: {word}: {done.complaint}")
    case.metrics["combinations"] = float(combinations)
    assert not wrong, finding(
        test=f"each of {combinations} combinations of {', '.join(names)}, 64 KiB each way",
        observed=wrong,
        expected="moves the data and shows the flags as set",
        reference=link.guest.profile.source("netfront"),
    )


@pytest.mark.parametrize("feature", ["tx", "sg", "gso", "tso"])
def test_backend_without(link: Link, feature: str) -> None:
    """D7: dom0 switches an offload of the vif off under a running guest: data still moves both ways."""
    link.dom0("ethtool", "-K", link.vif, feature, "off")

    arrived(link.upload(SIZE // 4), f"data to dom0, vif {feature} off", link)
    arrived(link.download(SIZE // 4), f"data from dom0, vif {feature} off", link)
