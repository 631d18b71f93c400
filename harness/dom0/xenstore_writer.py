# SPDX-License-Identifier: BSD-2-Clause
"""Runs in dom0, with its Python and nothing but its standard library: writes to a path of xenstore again and again, by one connection.

    python3 storm.py PATH ROUNDS VALUE..

In each of ROUNDS rounds each VALUE is written. A tool for each write would leave the guest a rest between any two.
"""

from __future__ import annotations

import os
import sys

# xen/include/public/io/xs_wire.h: XS_WRITE, XS_ERROR, and a header of four 32-bit numbers: type, request, transaction, length.
WRITE, ERROR = 11, 16


def write(wire: int, path: str, value: str) -> None:
    """Raises OSError for what xenstored refuses."""
    body = path.encode() + b"\0" + value.encode()
    os.write(wire, b"".join(number.to_bytes(4, "little") for number in (WRITE, 0, 0, len(body))) + body)
    head = os.read(wire, 16)
    said = os.read(wire, int.from_bytes(head[12:16], "little"))
    if int.from_bytes(head[:4], "little") == ERROR:
        raise OSError(f"{path}: xenstored says {said.decode(errors='replace')!r}")


def main() -> None:
    path, rounds, *values = sys.argv[1:]
    wire = os.open("/dev/xen/xenbus", os.O_RDWR)
    for _ in range(int(rounds)):
        for value in values:
            write(wire, path, value)


if __name__ == "__main__":
    main()
