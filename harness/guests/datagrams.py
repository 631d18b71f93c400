# SPDX-License-Identifier: BSD-2-Clause
"""UDP both ways between a guest and dom0, in datagrams of sizes that the caller chooses, with its digests.

FreeBSD sends and takes plain ones with its nc, which reads 16384 bytes at once. The control guest's busybox has no tool for that,
but a TFTP client: each of its datagrams is a block, of a size of the caller's, with 4 bytes before it.
"""

from __future__ import annotations

from collections.abc import Sequence

from harness.guests.link import SEED, Link, Transfer, digest_of
from harness.guests.peer import Peer

# The client's own request has to fit (busybox, networking/tftp.c); a smaller datagram is a file's short last block.
_LEAST_BLOCK = 64


def up(link: Link, sizes: Sequence[int], seconds: float = 60) -> Transfer:
    """From the guest to dom0, a datagram (or block) of each of ``sizes``."""
    if link.guest.profile.udp_by_tftp:
        return _tftp(link, "-p", sizes, seconds)
    port = link.next_port()
    peer = Peer(link.host, ["recv_datagrams", link.here, str(port), str(sum(sizes))], link.namespace)
    each = "; ".join(f"dd if=/dev/urandom bs={size} count=1 2>/dev/null | tee -a /tmp/fxh-all; sleep 0.2" for size in sizes)
    nc = f"timeout {int(seconds)} nc -u -w 1 {link.here} {port} > /dev/null"
    sent = link.guest.sh(f"rm -f /tmp/fxh-all; ( {each} ) | {nc}; fxh_digest < /tmp/fxh-all", seconds + 30).split()[0]
    done = peer.result(seconds + 40)
    return Transfer(done.bytes, sent, done.md5, done.seconds, done.error)


def down(link: Link, sizes: Sequence[int], seconds: float = 60) -> Transfer:
    """From dom0 to the guest, a datagram (or block) of each of ``sizes``."""
    if link.guest.profile.udp_by_tftp:
        return _tftp(link, "-g", sizes, seconds)
    port, size = link.next_port(), sum(sizes)
    ready = f"netstat -an -p udp | grep -q '[.]{port} ' && break; sleep 0.1"
    takes = f"timeout {int(seconds)} nc -u -l {link.there} {port} < /dev/null > /tmp/fxh-all"
    link.guest.sh(f"( {takes} ) > /dev/null 2>&1 & for i in $(seq 100); do {ready}; done")
    words = ["send_datagrams", link.there, str(port), str(size), str(SEED), ",".join(map(str, sizes))]
    done = Peer(link.host, words, link.namespace).result(seconds + 40)
    look = f"[ $(stat -f %z /tmp/fxh-all) -ge {size} ] && break; sleep 0.2"
    arrived = link.guest.sh(f"for i in $(seq 25); do {look}; done; fxh_digest < /tmp/fxh-all").split()[0]
    return Transfer(done.bytes, digest_of(size), arrived, done.seconds, done.error)


def _tftp(link: Link, way: str, sizes: Sequence[int], seconds: float) -> Transfer:
    """A file for each of ``sizes``, in blocks as long as it is; ``way`` is the client's, -p to dom0 and -g from it."""
    port, size, steps = link.next_port(), sum(sizes), []
    peer = Peer(link.host, ["tftp", link.here, str(port), str(size), str(SEED)], link.namespace)
    for one in sizes:
        if way == "-p":
            steps.append(f"dd if=/dev/urandom of=/tmp/fxh-one bs={one} count=1 2>/dev/null")
        # It asks again and again: the first that fails is the last.
        client = f"timeout {int(seconds)} tftp {way} -b {max(one, _LEAST_BLOCK)}"
        steps.append(f"{client} -l /tmp/fxh-one -r {one} {link.here} {port} || exit; cat /tmp/fxh-one >> /tmp/fxh-all")
    script = f": > /tmp/fxh-all; ( {'; '.join(steps)} ) > /dev/null 2>&1; fxh_digest < /tmp/fxh-all"
    here = link.guest.sh(script, seconds + 30).split()[0]
    done = peer.result(seconds + 40)
    sent, arrived = (here, done.md5) if way == "-p" else (done.md5, here)
    return Transfer(done.bytes, sent, arrived, done.seconds, done.error)
