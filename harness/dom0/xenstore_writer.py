# SPDX-License-Identifier: BSD-2-Clause
"""Program for dom0: write to a path of xenstore repeatedly, over one connection.

    xenstore_writer PATH ROUNDS VALUE..

Each of ROUNDS rounds writes every VALUE. One connection serves all writes: starting a tool for each write would give the guest a
pause between two writes.
"""

from __future__ import annotations

import os
import sys

# xen/include/public/io/xs_wire.h: XS_WRITE and XS_ERROR. A header has four 32-bit numbers: type, request, transaction, length.
WRITE, ERROR = 11, 16


def write(connection: int, path: str, value: str) -> None:
    """Write one value over the file descriptor ``connection``. Raises OSError if xenstored refuses it."""
    body = path.encode() + b"\0" + value.encode()
    os.write(connection, b"".join(number.to_bytes(4, "little") for number in (WRITE, 0, 0, len(body))) + body)
    header = os.read(connection, 16)
    reply = os.read(connection, int.from_bytes(header[12:16], "little"))
    if int.from_bytes(header[:4], "little") == ERROR:
        raise OSError("%s: xenstored replied %r" % (path, reply.decode(errors="replace")))


def main() -> None:
    path, rounds, *values = sys.argv[1:]
    connection = os.open("/dev/xen/xenbus", os.O_RDWR)
    for _ in range(int(rounds)):
        for value in values:
            write(connection, path, value)


if __name__ == "__main__":
    main()
