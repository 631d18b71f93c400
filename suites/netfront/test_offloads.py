# SPDX-License-Identifier: BSD-2-Clause
"""Segmentation and checksums. Frame sizes prove TSO, the peer proves checksums, digests prove content."""

from __future__ import annotations

import pytest

from harness.guests.link import IPV4, Link
from harness.oracles import frames
from harness.oracles.finding import finding, precondition
from harness.plugin.case_context import CaseContext

from .support import SIZE, assert_transferred, ipv4_and_ipv6, set_offloads


@ipv4_and_ipv6("link", "netfront/test_offloads::test_content_both_ways")
def test_content_both_ways(link: Link, case: CaseContext) -> None:
    """1 MiB in each direction arrives as it was sent, and dom0 drops no segment for its checksum.

    Source: sys/dev/xen/netfront/netfront.c; Linux drivers/net/xen-netfront.c
    Catches: corrupted packets (planted)
    """
    errors = link.checksum_errors()

    up = link.upload(SIZE)
    down = link.download(SIZE)

    case.metrics |= {"up": up.seconds, "down": down.seconds}
    assert_transferred(up, f"{SIZE} bytes over TCP, {link.family.name}, from the guest to dom0", link)
    assert_transferred(down, f"{SIZE} bytes over TCP, {link.family.name}, from dom0 to the guest", link)
    bad = link.checksum_errors() - errors
    assert bad == 0, finding(
        test=f"{SIZE} bytes over TCP, {link.family.name}, in each direction",
        observed=f"dom0 threw {bad} segments away for their checksums",
        expected="every segment has a good checksum, or one that the backend completes",
        reference=link.guest.os.source("netfront"),
    )


def test_segmentation_is_used(link: Link, case: CaseContext) -> None:
    """A guest that shows TSO as on sends segments larger than the MSS to a backend that accepts them.

    Source: sys/dev/xen/netfront/netfront.c, create_netdev() and xn_configure_features(); sys/netinet/tcp_subr.c
    Catches: TSO that is shown as on and never used, FreeBSD 12.0 and later (known issue)
    """
    ask = link.guest.os
    shown = ask.offloads(link.guest.sh, link.interface).get("tso", False)
    backend = link.host.xenstore.tree(f"/local/domain/0/backend/vif/{link.guest.domid}/0")
    offered = any(path.endswith("/feature-gso-tcpv4") and value == "1" for path, value in backend.items())

    with link.capture(case.directory / "upload.pcap") as seen:
        done = link.upload(SIZE)

    assert_transferred(done, f"{SIZE} bytes from the guest", link)
    sent = frames.sent_by(seen, link.there)
    size = frames.largest(sent)
    case.metrics |= {"frames": float(len(sent)), "largest payload": float(size)}
    assert shown, finding(
        test="the offloads of the guest's interface after the boot",
        observed="the guest shows TSO as off",
        expected="TSO is on",
        reference=link.guest.os.source("netfront"),
    )
    precondition(offered, "the backend offers no feature-gso-tcpv4")
    assert size > link.family.mss, finding(
        test="1 MiB over TCP to dom0, TSO shown as on, feature-gso-tcpv4 offered by the backend",
        observed=f"the largest of {len(sent)} frames carries {size} bytes: every segment was cut in the guest",
        expected=f"the guest hands over segments of many times {link.family.mss} bytes",
        reference=f"{link.guest.os.source('netfront')} (both IFCAP_TSO4 and CSUM_TSO in if_hwassist are needed)",
    )


def test_segmentation_can_be_switched_off(link: Link, case: CaseContext) -> None:
    """With TSO switched off no frame from the guest is larger than the MSS.

    Source: sys/dev/xen/netfront/netfront.c, xn_configure_features(); sys/netinet/tcp_subr.c
    """
    set_offloads(link, tso=False)

    with link.capture(case.directory / "upload.pcap") as seen:
        done = link.upload(SIZE // 4)

    assert_transferred(done, f"{SIZE // 4} bytes from the guest with TSO off", link)
    size = frames.largest(frames.sent_by(seen, link.there))
    precondition(size, "the capture holds no data from the guest")
    wrong = []
    if link.guest.os.offloads(link.guest.sh, link.interface).get("tso", False):
        wrong.append("the guest shows TSO as on again")
    if size > link.family.mss:
        wrong.append(f"a frame carries {size} bytes")
    assert not wrong, finding(
        test=f"TSO switched off, then {SIZE // 4} bytes over TCP to dom0",
        observed=wrong,
        expected=f"TSO stays off, and no frame carries more than the MSS of {link.family.mss} bytes",
        reference=link.guest.os.source("netfront"),
    )


def joins(frames: int, packets: int) -> bool:
    """Whether the guest joined segments. One or two frames are ARP."""
    return packets < frames - frames // 10


def test_segments_are_joined(link: Link, case: CaseContext) -> None:
    """A guest that shows LRO as on joins single segments from dom0 into fewer packets before IP gets them.

    Source: sys/dev/xen/netfront/netfront.c, xn_configure_features() and xn_rxeof()
    Catches: LRO that is shown as on while tcp_lro_init() is never called, FreeBSD 12.0 and later (known issue)
    """
    ask = link.guest.os
    # Linux calls it GRO and does it for every driver of this kind.
    shown = ask.offloads(link.guest.sh, link.interface).get("lro", True)
    link.dom0("ethtool", "-K", link.vif, "tso", "off", "gso", "off")

    # How many segments an interrupt brings depends on which domain has the CPU. LRO that is never used joins none in any transfer.
    for _ in range(3):
        before = ask.received(link.guest.sh, link.interface)
        done = link.download(SIZE)
        taken, given = (after - first for first, after in zip(before, ask.received(link.guest.sh, link.interface), strict=True))
        if done.complaint or joins(taken, given):
            break

    assert_transferred(done, f"{SIZE} bytes from dom0, in segments of the MSS", link)
    case.metrics |= {"frames": float(taken), "packets": float(given)}
    assert shown, finding(
        test="the offloads of the guest's interface after the boot",
        observed="the guest shows LRO as off",
        expected="LRO is on",
        reference=link.guest.os.source("netfront"),
    )
    assert taken >= SIZE // link.family.mss, (
        f"1 MiB came in {taken} frames: dom0 sends no single segments, so the case cannot judge"
    )
    assert joins(taken, given), finding(
        test="1 MiB over TCP from dom0 in single segments, LRO shown as on",
        observed=f"IP got {given} packets of {taken} frames: segments are not joined",
        expected="the guest joins the segments of one interrupt",
        reference=f"{link.guest.os.source('netfront')} (only xn_configure_features() calls tcp_lro_init(); xn_rxeof() depends on lro_cnt)",
    )


# Linux's netfront cannot switch this off.
@pytest.mark.needs(os="freebsd")
@ipv4_and_ipv6("link", "netfront/test_offloads::test_checksums_by_the_guest")
def test_checksums_by_the_guest(link: Link, case: CaseContext) -> None:
    """With TXCSUM off, and always by IPv6, every frame on the vif has a full checksum from the guest.

    netfront offers checksum offload for IPv4 alone (create_netdev(), XN_CSUM_FEATURES), so IPv6 needs no setting.

    Source: sys/dev/xen/netfront/netfront.c, create_netdev()
    Catches: -txcsum without effect (planted)
    """
    test = "IPv6, for which netfront offers no checksum offload"
    if link.family is IPV4:
        test = "IPv4, TXCSUM off"
        set_offloads(link, tx=False)

    with link.capture(case.directory / "upload.pcap", whole=True) as seen:
        done = link.upload(SIZE // 4)

    assert_transferred(done, f"{SIZE // 4} bytes to dom0 over {test}", link)
    sent = frames.sent_by(seen, link.there)
    bad = frames.bad_checksums(sent)
    case.metrics |= {"frames": float(len(sent)), "bad": float(bad)}
    precondition(sent, "the capture holds no data from the guest")
    assert bad == 0, finding(
        test=f"{SIZE // 4} bytes to dom0 over {test}",
        observed=f"{bad} of {len(sent)} frames have a wrong TCP checksum on the vif",
        expected="the guest computes each checksum itself",
        reference=link.guest.os.source("netfront"),
    )


@pytest.mark.needs(os="freebsd")
@pytest.mark.parametrize(("flag", "key", "value"), [("rx", "feature-no-csum-offload", "1"), ("lro", "feature-gso-tcpv4", "0")])
def test_backend_is_told(link: Link, flag: str, key: str, value: str, case: CaseContext) -> None:
    """Switching RXCSUM or LRO off resets the interface and tells the backend, and the link is back within 30 s.

    Source: sys/dev/xen/netfront/netfront.c
    """
    path = f"/local/domain/{link.guest.domid}/device/vif/0/{key}"

    set_offloads(link, **{flag: False})

    up = link.wait_up(30)
    written = link.host.xenstore.read(path)
    wrong = []
    if not up:
        wrong.append("the guest does not answer within 30 s")
    if (written or "0") != value:
        wrong.append(f"{key} in the frontend's directory is {written!r}")
    assert not wrong, finding(
        test=f"{flag} switched off on the guest's interface",
        observed=wrong,
        expected=f"the frontend writes {key} = {value}, and the link is back within 30 s",
        reference=link.guest.os.source("netfront"),
    )
    with link.capture(case.directory / "download.pcap") as seen:
        done = link.download(SIZE // 4)
    assert_transferred(done, f"{SIZE // 4} bytes to the guest with {flag} off", link)
    if flag == "lro":
        size = frames.largest(frames.sent_by(seen, link.here))
        assert size <= link.family.mss, finding(
            test=f"{SIZE // 4} bytes to the guest with LRO off",
            observed=f"dom0 sends frames that carry up to {size} bytes",
            expected=f"dom0 sends at most the MSS of {link.family.mss} bytes, because {key} is 0",
            reference=link.guest.os.source("netfront"),
        )


def test_every_combination(link: Link, case: CaseContext) -> None:
    """With every combination of the offloads data arrives in both directions, and each flag reads back as set.

    Source: sys/dev/xen/netfront/netfront.c, create_netdev() and xn_configure_features(); Linux drivers/net/xen-netfront.c
    """
    ask = link.guest.os
    requested = dict(ask.offloads(link.guest.sh, link.interface))
    names, wrong = sorted(requested), []
    combinations = 2 ** len(names)
    # Twice, but once under emulation, which is slow.
    passes = 1 if link.host.facts.emulated else 2
    for n in [*range(combinations)] * passes:
        # Gray code: one flag changes from one combination to the next.
        wanted = {name: bool((n ^ n >> 1) >> bit & 1) for bit, name in enumerate(names)}
        flags = " ".join(f"{'' if on else '-'}{name}" for name, on in wanted.items())
        # Compare with the last request, not with the flags that are shown: Linux remembers a request that it cannot obey now.
        set_offloads(link, **{name: on for name, on in wanted.items() if requested[name] != on})
        requested = wanted
        if not link.wait_up(30):
            wrong.append(f"{flags}: the link does not come back within 30 s")
            continue
        shown = ask.offloads(link.guest.sh, link.interface)
        # Linux switches TSO off while scatter-gather or checksums are off (netdev_fix_features()).
        for name, on in wanted.items():
            if shown.get(name) and not on:
                wrong.append(f"{flags}: {name} reads back as on")
            if ask.independent_offloads and on and not shown.get(name):
                wrong.append(f"{flags}: {name} reads back as off")
        for way, done in (("to dom0", link.upload(64 << 10)), ("from dom0", link.download(64 << 10))):
            if done.complaint:
                wrong.append(f"{flags}: {way}: {done.complaint}")
    case.metrics["combinations"] = float(combinations)
    assert not wrong, finding(
        test=f"each of {combinations} combinations of {', '.join(names)}, with 64 KiB in each direction",
        observed=wrong,
        expected="the data arrives, and the interface shows the flags as set",
        reference=link.guest.os.source("netfront"),
    )


@pytest.mark.parametrize("feature", ["tx", "sg", "gso", "tso"])
def test_backend_without(link: Link, feature: str) -> None:
    """If dom0 switches an offload of the vif off under a running guest, data still arrives in both directions.

    Source: sys/dev/xen/netfront/netfront.c; Linux drivers/net/xen-netfront.c
    """
    link.dom0("ethtool", "-K", link.vif, feature, "off")

    assert_transferred(link.upload(SIZE // 4), f"{SIZE // 4} bytes to dom0, {feature} off on the vif", link)
    assert_transferred(link.download(SIZE // 4), f"{SIZE // 4} bytes from dom0, {feature} off on the vif", link)
