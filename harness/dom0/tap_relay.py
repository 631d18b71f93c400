# SPDX-License-Identifier: BSD-2-Clause
"""Program for dom0: relay frames between two TAP devices, as QEMU does between a bridge and the network card that it emulates.

    tap_relay NEAR FAR

It creates both devices and prints ``ready``, or ``error: REASON``. It relays until its stdin ends, and the devices end with it.

The devices have no offloads. So the kernel divides large segments and completes checksums before it hands a frame over, as for a
simple network card.
"""

from __future__ import annotations

import fcntl
import os
import select
import struct
import sys

# linux/if_tun.h; QEMU's net/tap-linux.c also asks for the header, which virtio_net.h describes.
TUNSETIFF = 0x400454CA
IFF_TAP, IFF_NO_PI, IFF_VNET_HDR = 0x0002, 0x1000, 0x4000
# Bytes of that header. One of zeros says that the frame is as it should be.
HEADER = 10
# The largest frame: 64 KiB of IP and an Ethernet header with a VLAN tag.
LARGEST = HEADER + 65535 + 18


def create(name: str) -> int:
    """Create the TAP device ``name`` and return its file descriptor."""
    device = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK)
    fcntl.ioctl(device, TUNSETIFF, struct.pack("16sH22x", name.encode(), IFF_TAP | IFF_NO_PI | IFF_VNET_HDR))
    return device


def relay(source: int, target: int) -> None:
    """Pass on the frames that wait in ``source``. As on a wire, a frame is lost if the device ``target`` is down or full."""
    while True:
        try:
            frame = os.read(source, LARGEST)
        except BlockingIOError:
            return
        try:
            os.write(target, bytes(HEADER) + frame[HEADER:])
        except OSError:
            pass


def main() -> None:
    try:
        near, far = (create(name) for name in sys.argv[1:])
    except OSError as exc:
        print("error: %s" % exc, flush=True)
        return
    other = {near: far, far: near}
    waiting = select.poll()
    for device in other:
        waiting.register(device, select.POLLIN)
    waiting.register(0, select.POLLIN)
    print("ready", flush=True)
    while True:
        for device, _ in waiting.poll():
            if device in other:
                relay(device, other[device])
            elif not os.read(0, 1):
                return


if __name__ == "__main__":
    main()
