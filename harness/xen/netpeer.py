"""Runs in dom0, with its Python and nothing but its standard library: the far end of a TCP connection.

    python3 netpeer.py recv ADDRESS PORT BYTES                      takes one connection, reads BYTES
    python3 netpeer.py send ADDRESS PORT BYTES SEED CHUNK [SECONDS] takes one connection, writes BYTES in writes of CHUNK, again
                                                                    and again until SECONDS have passed
    python3 netpeer.py push ADDRESS PORT BYTES SEED CHUNK [SECONDS] connects, and writes

Prints ``listening``, and at the end a line of JSON: bytes, md5, seconds, error.
"""

from __future__ import annotations

import hashlib
import json
import random
import socket
import sys
import time

PATIENCE = 25.0


def main() -> None:
    verb, address, port, count = sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
    digest, moved, error = hashlib.md5(usedforsecurity=False), 0, ""
    begun = time.monotonic()
    link = None
    try:
        if verb == "push":
            link = socket.create_connection((address, port), timeout=PATIENCE)
        else:
            door = socket.socket()
            door.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            door.bind((address, port))
            door.listen(1)
            door.settimeout(PATIENCE)
            print("listening", flush=True)
            link, _ = door.accept()
        link.settimeout(PATIENCE)
        begun = time.monotonic()
        if verb == "recv":
            while moved < count:
                data = link.recv(1 << 16)
                if not data:
                    break
                digest.update(data)
                moved += len(data)
        else:
            link.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            seed, chunk = int(sys.argv[5]), int(sys.argv[6])
            lasting = float(sys.argv[7]) if len(sys.argv) > 7 else 0
            payload = random.Random(seed).randbytes(count)
            while not moved or time.monotonic() - begun < lasting:
                for at in range(0, count, chunk):
                    link.sendall(payload[at : at + chunk])
                    moved += len(payload[at : at + chunk])
                digest.update(payload)
            link.shutdown(socket.SHUT_WR)
            # The other side closes when it has all.
            link.recv(1)
    except OSError as exc:
        error = f"{type(exc).__name__}: {exc}"
    seconds = round(time.monotonic() - begun, 3)
    print(json.dumps({"bytes": moved, "md5": digest.hexdigest(), "seconds": seconds, "error": error}), flush=True)


if __name__ == "__main__":
    main()
