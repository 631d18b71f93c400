# SPDX-License-Identifier: BSD-2-Clause
"""Frames that a guest sends in one buffer of several pages."""

from __future__ import annotations

import shlex
import socket
import struct
from pathlib import Path

import pytest

from harness.guests import program
from harness.guests.link import Link, Transfer
from harness.oracles.finding import finding
from harness.plugin.case_context import CaseContext

from .support import complaints, require_link, set_mtu

MTU = 9000
# Bytes of data in a frame: in one page, just above a page with the headers, and the most that MTU 9000 allows.
SIZES = (1472, 4096, 5000, 8972)
PAGE, ETHERNET, IP, UDP = 4096, 14, 20, 8
# errno of write(2) to a bpf(4) that has no buffer of this size: FreeBSD before bpf_movein() used m_get3() (14.0).
EIO = 5
_PROGRAM = "/tmp/fxh-write-frame"


def test_frames_in_one_buffer(link: Link, case: CaseContext) -> None:
    """Frames of up to 9014 bytes that lie in one buffer, across page boundaries, arrive in dom0 as they were sent.

    A request of netfront's ring describes bytes of one page. netback shuts an interface down whose request goes beyond it.
    bpf(4) and packet(7) take a frame as it is, so the driver gets a buffer that TCP would never give it.

    Kind of bug: data placement, a buffer that the driver's usual users never pass.

    Source: xen/include/public/io/netif.h; Linux drivers/net/xen-netback/netback.c; sys/dev/xen/netfront/netfront.c, xn_txq_encap()
    Catches: `Cross page boundary` and no network until the guest restarts, FreeBSD 12.2 to 13.2 (xcp-ng/xcp issue 538)
    """
    guest = link.guest
    set_mtu(link, MTU, case)
    guest.os.set_mtu(guest.sh, link.interface, MTU)
    require_link(link, f"MTU {MTU} at both ends")
    program.install(guest, Path(__file__).with_name("write_frame.c"), _PROGRAM)

    mac = link.dom0("cat", f"/sys/class/net/{link.device}/address").strip()
    done = {f"{size} bytes": send(link, mac, size) for size in SIZES}

    wrong = complaints(done)
    if wrong and not link.wait_up():
        wrong.append("afterwards the guest does not reach dom0 any more")
    case.metrics |= {f"{size} bytes": done[f"{size} bytes"].seconds for size in SIZES}
    assert not wrong, finding(
        test=f"UDP datagrams of {', '.join(map(str, SIZES))} bytes, each as one frame in one buffer, MTU {MTU}",
        observed=wrong,
        expected="every datagram arrives as it was sent, and the interface stays up",
        reference=f"{guest.os.source('netfront')}; xcp-ng/xcp issue 538",
    )


def send(link: Link, mac: str, size: int) -> Transfer:
    """Send ``size`` random bytes in one frame from the guest to dom0's interface with this MAC address.

    Skips the case if the guest's kernel cannot send such a frame.
    """
    guest, port = link.guest, link.next_port()
    peer = link.peer("recv_datagrams", port, size)
    head = link.interface.encode().ljust(16, b"\0") + headers(link, mac, port, size)
    data = "/tmp/fxh-frame"
    sent = guest.sh(f"head -c {size} /dev/urandom > {data}; fxh_digest < {data}").split()[0]
    octal = "".join(f"\\{byte:03o}" for byte in head)
    done = guest.run(f"{{ printf {shlex.quote(octal)}; cat {data}; }} | {_PROGRAM}", check=False)
    whole = ETHERNET + IP + UDP + size
    if done.status == EIO and whole > PAGE:
        pytest.skip(f"needs a kernel that takes a frame of {whole} bytes; elsewhere: FreeBSD 14.0 or later, or the control guest")
    assert not done.status, finding(
        test=f"a frame of {whole} bytes written to {link.interface}",
        observed=f"the program ends with errno {done.status}",
        expected="the kernel takes the frame",
        reference=guest.os.source("netfront"),
    )
    came = peer.result(60)
    return link.checked(Transfer(came.bytes, sent, came.md5, came.seconds, came.error))


def headers(link: Link, there: str, port: int, size: int) -> bytes:
    """The Ethernet, IPv4 and UDP headers of a datagram of ``size`` bytes from the guest to dom0's MAC address ``there``.

    UDP has no checksum.
    """
    macs = [bytes.fromhex(mac.replace(":", "")) for mac in (there, link.guest.config.vifs[link.index].mac)]
    ends = socket.inet_aton(link.there) + socket.inet_aton(link.here)
    # RFC 791: version and length, no fragments (DF), time to live 64, UDP.
    ip = struct.pack(">BBHHHBBH", 0x45, 0, IP + UDP + size, 0, 0x4000, 64, socket.IPPROTO_UDP, 0) + ends
    checksum = 0xFFFF - int.from_bytes(ip, "big") % 0xFFFF
    ip = ip[:10] + struct.pack(">H", checksum) + ip[12:]
    return b"".join(macs) + struct.pack(">H", 0x0800) + ip + struct.pack(">HHHH", 9, port, UDP + size, 0)
