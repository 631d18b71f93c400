# SPDX-License-Identifier: BSD-2-Clause
"""Runs in dom0, with its Python and nothing but its standard library: the far end of a connection, or of datagrams.

    recv ADDRESS PORT BYTES                     takes one connection, reads BYTES
    send ADDRESS PORT BYTES SEED CHUNK [SECONDS [PATIENCE]]
                                                takes one connection, writes BYTES in writes of CHUNK, again and again until
                                                SECONDS have passed; a write may take PATIENCE seconds
    push ADDRESS PORT BYTES SEED CHUNK          connects, and writes
    hear ADDRESS PORT BYTES                     takes datagrams until BYTES have come
    tell ADDRESS PORT BYTES SEED SIZE,SIZE..    sends a datagram of each size, BYTES in all
    tftp ADDRESS PORT BYTES SEED                gives and takes files until BYTES have gone or come

Prints ``listening``, and at the end what it moved as a literal of Python: bytes, md5, seconds, error.

It is started for each transfer, and under emulation what it imports is most of that: json, hashlib (it loads OpenSSL), random and
socket (with its enumerations) are three quarters of a second. What stands below them in CPython takes a tenth.
"""

from __future__ import annotations

import _random
import _socket
import sys
import time

try:
    from _md5 import md5  # type: ignore[import-not-found]
except ImportError:  # a Python built without its own digests
    from hashlib import md5

PATIENCE = 25.0
Address = tuple[str, int]


class Tally:
    """What was moved so far, and since when."""

    def __init__(self) -> None:
        self.bytes, self.begun, self.digest = 0, time.monotonic(), md5(usedforsecurity=False)

    def begin(self, link: _socket.socket, patience: float = PATIENCE) -> _socket.socket:
        link.settimeout(patience)
        self.begun = time.monotonic()
        return link

    def add(self, data: bytes) -> None:
        self.digest.update(data)
        self.bytes += len(data)


def opened(where: Address, kind: int = _socket.SOCK_STREAM) -> _socket.socket:
    """A socket of the version of IP that this address is of."""
    return _socket.socket(_socket.AF_INET6 if ":" in where[0] else _socket.AF_INET, kind)


def noise(seed: str, count: int) -> bytes:
    """So many bytes, as ``random.Random(seed).randbytes(count)`` makes them."""
    return _random.Random(int(seed)).getrandbits(8 * count).to_bytes(count, "little")


def accept(where: Address) -> _socket.socket:
    door = opened(where)
    door.setsockopt(_socket.SOL_SOCKET, _socket.SO_REUSEADDR, 1)
    door.bind(where)
    door.listen(1)
    door.settimeout(PATIENCE)
    print("listening", flush=True)
    return _socket.socket(fileno=door._accept()[0])  # type: ignore[attr-defined]


def recv(tally: Tally, where: Address, count: int) -> None:
    link = tally.begin(accept(where))
    while tally.bytes < count:
        data = link.recv(1 << 16)
        if not data:
            break
        tally.add(data)


def write(
    tally: Tally, link: _socket.socket, count: int, seed: str, chunk: str, seconds: str = "0", patience: str = str(PATIENCE)
) -> None:
    tally.begin(link, float(patience)).setsockopt(_socket.IPPROTO_TCP, _socket.TCP_NODELAY, 1)
    payload, step = noise(seed, count), int(chunk)
    while not tally.bytes or time.monotonic() - tally.begun < float(seconds):
        for at in range(0, count, step):
            link.sendall(payload[at : at + step])
            tally.add(payload[at : at + step])
    link.shutdown(_socket.SHUT_WR)
    # The other side closes when it has all.
    link.recv(1)


def send(tally: Tally, where: Address, count: int, *words: str) -> None:
    write(tally, accept(where), count, *words)


def push(tally: Tally, where: Address, count: int, *words: str) -> None:
    link = tally.begin(opened(where))
    link.connect(where)
    write(tally, link, count, *words)


def hear(tally: Tally, where: Address, count: int) -> None:
    door = tally.begin(opened(where, _socket.SOCK_DGRAM))
    door.bind(where)
    print("listening", flush=True)
    while tally.bytes < count:
        tally.add(door.recv(1 << 16))


def tell(tally: Tally, where: Address, count: int, seed: str, sizes: str) -> None:
    out, payload = tally.begin(opened(where, _socket.SOCK_DGRAM)), noise(seed, count)
    for size in map(int, sizes.split(",")):
        data = payload[tally.bytes : tally.bytes + size]
        out.sendto(data, where)
        tally.add(data)
        # No receiver's buffer holds them all.
        time.sleep(0.2)


class Exchange:
    """One client of :func:`tftp`, in lock-step: what is said again is not answered again, nobody loses a datagram here."""

    def __init__(self, door: _socket.socket, client: Address) -> None:
        self.door, self.client = door, client

    def say(self, operation: int, *rest: bytes) -> None:
        self.door.sendto(b"".join((operation.to_bytes(2, "big"), *rest)), self.client)

    def hear(self, operation: int, block: int) -> bytes:
        wanted = operation.to_bytes(2, "big") + block.to_bytes(2, "big")
        while True:
            packet, client = self.door.recvfrom(1 << 16)
            if client == self.client and packet[:4] == wanted:
                return packet[4:]


def tftp(tally: Tally, where: Address, count: int, seed: str) -> None:
    """RFC 1350, with RFC 2348's size of blocks. A file's name is its size in bytes."""
    door, payload = tally.begin(opened(where, _socket.SOCK_DGRAM)), noise(seed, count)
    door.bind(where)
    print("listening", flush=True)
    while tally.bytes < count:
        packet, client = door.recvfrom(1 << 16)
        operation, (name, _, *options) = packet[:2], packet[2:].split(b"\0")
        if operation not in (READ, WRITE):
            continue
        other, size = Exchange(door, client), int(dict(zip(options[::2], options[1::2])).get(b"blksize", b"512"))  # noqa: B905
        agreed = b"blksize\0%d\0" % size if b"blksize" in options else b""
        if operation == READ:
            data = payload[tally.bytes : tally.bytes + int(name)]
            give(other, data, size, agreed)
            tally.add(data)
        else:
            take(other, tally, size, agreed)


def give(other: Exchange, data: bytes, size: int, agreed: bytes) -> None:
    if agreed:
        other.say(OPTIONS, agreed)
        other.hear(TAKEN, 0)
    for number, at in enumerate(range(0, len(data) + 1, size), 1):
        other.say(DATA, number.to_bytes(2, "big"), data[at : at + size])
        other.hear(TAKEN, number)


def take(other: Exchange, tally: Tally, size: int, agreed: bytes) -> None:
    other.say(*((OPTIONS, agreed) if agreed else (TAKEN, b"\0\0")))
    number, last = 1, False
    while not last:
        data = other.hear(DATA, number)
        tally.add(data)
        other.say(TAKEN, number.to_bytes(2, "big"))
        number, last = number + 1, len(data) < size


READ, WRITE = b"\0\1", b"\0\2"
DATA, TAKEN, OPTIONS = 3, 4, 6
VERBS = {verb.__name__: verb for verb in (recv, send, push, hear, tell, tftp)}


def main() -> None:
    verb, address, port, count, *words = sys.argv[1:]
    tally, error = Tally(), ""
    try:
        VERBS[verb](tally, (address, int(port)), int(count), *words)
    except OSError as exc:
        error = f"{type(exc).__name__}: {exc}"
    seconds = round(time.monotonic() - tally.begun, 3)
    print(ascii({"bytes": tally.bytes, "md5": tally.digest.hexdigest(), "seconds": seconds, "error": error}), flush=True)


if __name__ == "__main__":
    main()
