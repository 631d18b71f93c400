"""Sizes, small writes, interruptions, forwarding."""

from __future__ import annotations

import pytest

from harness.guests import admin
from harness.guests.link import Link, Listener
from harness.oracles import frames
from harness.oracles.finding import finding
from harness.plugin.rig import CaseContext

from .conftest import again, replug
from .test_offloads import SIZE, SOURCE, arrived


def test_echo_sizes(link: Link) -> None:
    """D10: echoes of all sizes come back whole, those in many fragments, too."""
    if link.guest.profile.os == "freebsd":
        # Of more than 16 fragments FreeBSD makes no packet by itself (sys/netinet/ip_reass.c, V_maxfragsperpacket).
        link.guest.sh("sysctl net.inet.ip.maxfragsperpacket=64")
    lost = [size for size in (0, 1, 56, 1471, 1472, 1473, 2952, 4095, 4096, 4097, 8192, 16384, 32768, 65507) if not link.ping(size)]
    assert not lost, finding(
        asked="echo requests of up to 65507 bytes",
        did=f"no good answer for {lost}",
        good="sends and takes fragments of all sizes",
        source=SOURCE[link.guest.profile.os],
    )


def test_small_writes(link: Link) -> None:
    """D9: a stream of tiny segments is taken as it comes."""
    arrived(link.download(30_000, chunk=11), "30 kB in writes of 11 bytes with TCP_NODELAY", link)


@pytest.mark.parametrize(("there", "here"), [(9000, 9000), (9000, 1500)])
def test_large_mtu(link: Link, there: int, here: int, case: CaseContext) -> None:
    """D8: jumbo frames on both ends, or on the guest's alone: nothing hangs."""
    for device in (link.vif, link.host.bridge):
        link.dom0("ip", "link", "set", device, "mtu", str(here), check=False)
    admin.of(link.guest.profile).set_mtu(link.guest.sh, link.interface, there)
    assert link.wait_up(), f"no link with MTU {there}/{here}"

    with link.capture(case.directory / "both.pcap") as seen:
        up, down = link.upload(SIZE // 2), link.download(SIZE // 2)

    arrived(up, f"data from the guest, MTU {there} there, {here} here", link)
    arrived(down, f"data to the guest, MTU {there} there, {here} here", link)
    case.metrics["largest payload"] = float(frames.largest(frames.sent_by(seen, link.there)))


# Data is on its way when the vif goes down: dom0 has sent the guest a quarter of a megabyte.
INTERRUPTION = """
sent() { cat /sys/class/net/"$1"/statistics/tx_bytes; }
first=$(sent "$1")
for i in $(seq 300); do [ $(($(sent "$1") - first)) -ge 262144 ] && break; sleep 0.1; done
ip link set "$1" down; sleep 3; ip link set "$1" up; echo "up again"
"""


def test_vif_down_and_up(link: Link, case: CaseContext) -> None:
    """D14: dom0 takes the vif down for a moment in the middle of a transfer: the transfer goes on and ends."""
    interruption = Listener(link.host.transport.open(["sh", "-c", INTERRUPTION, "sh", link.vif]), "the interruption")
    case.undo.append(interruption.stream.close)

    # TCP tries again after as long as the silence lasted, so 12 seconds leave it half of them.
    done = link.download(SIZE, 150, lasting=12)

    case.metrics |= {"bytes": float(done.bytes), "seconds": done.seconds}
    interruption.until(rb"up again", 1)
    arrived(done, f"{done.bytes} bytes while the vif goes down for 3 s", link)


def test_detach_and_attach(link: Link) -> None:
    """D14: the interface is taken away and given again: it comes back and works."""
    source = SOURCE[link.guest.profile.os]
    replug(link.guest, {}, source)

    back = again(link.guest, source)
    arrived(back.upload(SIZE // 4), "data after the interface came back", back)


@pytest.mark.parametrize("backend_tx", ["off", "on"])
def test_forwarding(sides: tuple[Link, Link], case: CaseContext, backend_tx: str) -> None:
    """D11 D12: the guest routes between two networks of dom0; what it forwards has to have whole checksums.

    With ``tx on`` dom0 hands the guest packets whose checksum is not filled in yet, and the guest must not pass that on.
    """
    near, far = sides
    far.dom0("ip", "route", "add", near.here, "via", far.there)
    for side in (near, far):
        side.dom0("ethtool", "-K", side.vif, "tx", backend_tx)
    errors = near.checksum_errors() + far.checksum_errors()

    with far.capture(case.directory / "far.pcap", whole=True) as seen:
        done = near.forwarded(far, 64 << 10)

    bad = near.checksum_errors() + far.checksum_errors() - errors
    sent = frames.sent_by(seen, near.here)
    case.metrics |= {"bad checksums": float(bad), "frames": float(len(sent)), "largest payload": float(frames.largest(sent))}
    wrong = [
        word for word in (done.complaint, f"the two ends threw {bad} segments away for their checksums" if bad else "") if word
    ]
    assert not wrong, finding(
        asked=f"64 KiB of TCP from one network to another through the guest, dom0's vif with tx {backend_tx}",
        did=wrong,
        good="forwards every packet with a whole checksum",
        source=f"{SOURCE[near.guest.profile.os]}: FreeBSD bug 197344 (csum_blank is ignored), bug 273046 (LRO while forwarding)",
    )
