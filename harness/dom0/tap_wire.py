# SPDX-License-Identifier: BSD-2-Clause
"""Program for dom0: one end of a wire. Frames pass between a TAP device and the program's standard streams.

    tap_wire DEVICE

It creates the device and prints ``ready``, or ``error: REASON``. Then its length in four bytes (big-endian) precedes each frame in both
streams. The program runs until its stdin ends, and the device ends with it.
"""

from __future__ import annotations

import os
import select
import struct
import sys

from harness.dom0.tap_relay import HEADER, LARGEST, create

LENGTH = struct.Struct(">I")


def complete(data: bytearray) -> list[bytes]:
    """Remove the complete frames from the beginning of ``data`` and return them."""
    frames = []
    while len(data) >= LENGTH.size:
        end = LENGTH.size + LENGTH.unpack_from(data)[0]
        if len(data) < end:
            break
        frames.append(bytes(data[LENGTH.size : end]))
        del data[:end]
    return frames


def send(device: int) -> None:
    """Write the frames that wait in ``device`` to stdout."""
    while True:
        try:
            frame = os.read(device, LARGEST)[HEADER:]
        except BlockingIOError:
            return
        data = LENGTH.pack(len(frame)) + frame
        while data:
            data = data[os.write(1, data) :]


def main() -> None:
    try:
        device = create(sys.argv[1])
    except OSError as exc:
        print("error: %s" % exc, flush=True)
        return
    waiting = select.poll()
    waiting.register(device, select.POLLIN)
    waiting.register(0, select.POLLIN)
    print("ready", flush=True)
    received = bytearray()
    while True:
        for ready, _ in waiting.poll():
            if ready == device:
                send(device)
                continue
            part = os.read(0, 1 << 16)
            if not part:
                return
            received += part
            for frame in complete(received):
                try:
                    os.write(device, bytes(HEADER) + frame)
                except OSError:  # as on a wire, a frame is lost if the device is down or full
                    pass


if __name__ == "__main__":
    main()
