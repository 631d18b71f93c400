# SPDX-License-Identifier: BSD-2-Clause
"""UDP both ways between a guest and dom0, in datagrams of chosen sizes, with digests.

FreeBSD uses its nc, which reads 16384 bytes at once. The control guest's busybox has only a TFTP client. Each of its datagrams has
a header of 4 bytes and a block of the chosen size.
"""

from __future__ import annotations

from collections.abc import Sequence

from harness.guests.link import SEED, Link, Transfer, digest_of

# The client's own request must fit into a block (busybox, networking/tftp.c). A smaller datagram is the short last block of a file.
_LEAST_BLOCK = 64


def up(link: Link, sizes: Sequence[int], seconds: float = 60) -> Transfer:
    """Send a datagram (or block) of each of ``sizes`` from the guest to dom0."""
    if link.guest.os.udp_by_tftp:
        return _tftp(link, "-p", sizes, seconds)
    port = link.next_port()
    peer = link.peer("recv_datagrams", port, sum(sizes))
    each = "; ".join(f"dd if=/dev/urandom bs={size} count=1 2>/dev/null | tee -a /tmp/fxh-all; sleep 0.2" for size in sizes)
    nc = f"timeout {int(seconds)} nc -u -w 1 {link.here} {port} > /dev/null"
    sent = link.guest.sh(f"rm -f /tmp/fxh-all; ( {each} ) | {nc}; fxh_digest < /tmp/fxh-all", seconds + 30).split()[0]
    done = peer.result(seconds + 40)
    return link.checked(Transfer(done.bytes, sent, done.md5, done.seconds, done.error))


def down(link: Link, sizes: Sequence[int], seconds: float = 60) -> Transfer:
    """Send a datagram (or block) of each of ``sizes`` from dom0 to the guest."""
    if link.guest.os.udp_by_tftp:
        return _tftp(link, "-g", sizes, seconds)
    port, size = link.next_port(), sum(sizes)
    ready = f"netstat -an -p udp | grep -q '[.]{port} ' && break; sleep 0.1"
    receive = f"timeout {int(seconds)} nc -u -l {link.there} {port} < /dev/null > /tmp/fxh-all"
    link.guest.sh(f"( {receive} ) > /dev/null 2>&1 & for i in $(seq 100); do {ready}; done")
    peer = link.peer("send_datagrams", port, size, SEED, ",".join(map(str, sizes)), address=link.there)
    done = peer.result(seconds + 40)
    poll = f"[ $(stat -f %z /tmp/fxh-all) -ge {size} ] && break; sleep 0.2"
    arrived = link.guest.sh(f"for i in $(seq 25); do {poll}; done; fxh_digest < /tmp/fxh-all").split()[0]
    return link.checked(Transfer(done.bytes, digest_of(size), arrived, done.seconds, done.error))


def _tftp(link: Link, direction: str, sizes: Sequence[int], seconds: float) -> Transfer:
    """Transfer a file of each of ``sizes`` in one block. ``direction`` is the client's option: -p to dom0, -g from dom0."""
    port, size, steps = link.next_port(), sum(sizes), []
    peer = link.peer("tftp", port, size, SEED)
    for one in sizes:
        if direction == "-p":
            steps.append(f"dd if=/dev/urandom of=/tmp/fxh-one bs={one} count=1 2>/dev/null")
        # The client retries for long, so stop at the first failure.
        client = f"timeout {int(seconds)} tftp {direction} -b {max(one, _LEAST_BLOCK)}"
        steps.append(f"{client} -l /tmp/fxh-one -r {one} {link.here} {port} || exit; cat /tmp/fxh-one >> /tmp/fxh-all")
    script = f": > /tmp/fxh-all; ( {'; '.join(steps)} ) > /dev/null 2>&1; fxh_digest < /tmp/fxh-all"
    in_guest = link.guest.sh(script, seconds + 30).split()[0]
    done = peer.result(seconds + 40)
    sent, arrived = (in_guest, done.md5) if direction == "-p" else (done.md5, in_guest)

    return link.checked(Transfer(done.bytes, sent, arrived, done.seconds, done.error))
