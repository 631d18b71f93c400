# SPDX-License-Identifier: BSD-2-Clause
"""Program for dom0: pass frames between the vif ``argv[1]`` and the tap device fxhrelay.

The guest leaves checksums to netback, which marks such frames. The mark is lost here, so that dom0 gets frames with wrong checksums.
"""

import fcntl
import os
import select
import socket
import struct
import sys

# linux/if_tun.h: TUNSETIFF; IFF_TAP and IFF_NO_PI. linux/if_ether.h: ETH_P_ALL.
TUNSETIFF, TAP, ALL = 0x400454CA, 0x1002, 3

tap, raw = os.open("/dev/net/tun", os.O_RDWR), socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(ALL))
fcntl.ioctl(tap, TUNSETIFF, struct.pack("16sH14x", b"fxhrelay", TAP))
raw.bind((sys.argv[1], 0))
while True:
    for ready in select.select([tap, raw], [], [])[0]:
        if ready == tap:
            raw.send(os.read(tap, 1 << 17))
        else:
            data, where = raw.recvfrom(1 << 17)
            if where[2] != socket.PACKET_OUTGOING:
                os.write(tap, data)
