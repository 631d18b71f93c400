# SPDX-License-Identifier: BSD-2-Clause
"""Program for dom0: the far end of a guest's TCP connection or UDP datagrams.

    recv ADDRESS PORT BYTES [PATIENCE]          accept one connection and read BYTES; each may take PATIENCE seconds
    send ADDRESS PORT BYTES SEED CHUNK [SECONDS [PATIENCE]]
                                                accept one connection and write BYTES in writes of CHUNK, repeated until SECONDS
                                                have passed; the connection and each write may take PATIENCE seconds
    connect ADDRESS PORT BYTES SEED CHUNK       connect and write BYTES
    recv_datagrams ADDRESS PORT BYTES           receive datagrams until BYTES have arrived
    send_datagrams ADDRESS PORT BYTES SEED SIZE,SIZE..
                                                send one datagram of each size, BYTES in all
    both ADDRESS PORT BYTES SEED CHUNK PATIENCE
                                                accept a connection at PORT and read BYTES, and one at PORT + 1 and write BYTES
    tftp ADDRESS PORT BYTES SEED                serve and accept files until BYTES have been transferred

A verb that waits for the guest prints the counters of dom0's kernel and ``listening``. Every verb ends with a Python literal: bytes,
md5, seconds, error.

The program runs once per transfer, and under emulation its imports take most of the time: json, hashlib (it loads OpenSSL), random
and socket (with its enumerations) need 0.75 s. The C modules below them need a tenth of that.
"""

from __future__ import annotations

import _random
import _socket
import posix
import sys
import time

try:
    from _md5 import md5  # type: ignore[import-not-found]
except ImportError:  # a Python that was built without its own digests
    from hashlib import md5

COUNTERS = ("/proc/net/snmp", "/proc/net/netstat", "/proc/net/dev")
"""Counters of Linux since its boot. After a failure the difference shows what happened (harness.guests.link_explainer)."""
PATIENCE = 25.0
"""Seconds that one socket operation may take."""


class Tally:
    """Counts and digests the bytes that were transferred, and measures the time since :meth:`begin`."""

    def __init__(self) -> None:
        self.bytes, self.begun = 0, time.monotonic()
        self.digest = md5(usedforsecurity=False) if sys.version_info >= (3, 9) else md5()

    def begin(self, connection: _socket.socket, patience: float = PATIENCE) -> _socket.socket:
        connection.settimeout(patience)
        self.begun = time.monotonic()
        return connection

    def add(self, data: bytes) -> None:
        self.digest.update(data)
        self.bytes += len(data)


def new_socket(where: tuple[str, int], kind: int = _socket.SOCK_STREAM) -> _socket.socket:
    """A socket of the address's family, IPv4 or IPv6."""
    return _socket.socket(_socket.AF_INET6 if ":" in where[0] else _socket.AF_INET, kind)


def payload(seed: str, count: int) -> bytes:
    """``count`` bytes, equal to ``random.Random(seed).randbytes(count)``."""
    return _random.Random(int(seed)).getrandbits(8 * count).to_bytes(count, "little")


def listening() -> None:
    """Print the counters, then that the guest may connect."""
    for name in COUNTERS:
        try:
            with open(name) as file:
                print(file.read(), end="")
        except OSError:  # dom0 is no Linux
            pass
    print("listening", flush=True)


def listener(where: tuple[str, int], patience: float = PATIENCE) -> _socket.socket:
    found = new_socket(where)
    found.setsockopt(_socket.SOL_SOCKET, _socket.SO_REUSEADDR, 1)
    found.bind(where)
    found.listen(1)
    found.settimeout(patience)
    return found


def accepted(where: _socket.socket) -> _socket.socket:
    return _socket.socket(fileno=where._accept()[0])  # type: ignore[attr-defined]


def accept(where: tuple[str, int], patience: float) -> _socket.socket:
    found = listener(where, patience)
    listening()
    return accepted(found)


def bind_datagrams(tally: Tally, where: tuple[str, int]) -> _socket.socket:
    found = tally.begin(new_socket(where, _socket.SOCK_DGRAM))
    found.bind(where)
    listening()
    return found


def recv(tally: Tally, where: tuple[str, int], count: int, patience: str = str(PATIENCE)) -> None:
    read(tally, accept(where, float(patience)), count, float(patience))


def read(tally: Tally, connection: _socket.socket, count: int, patience: float = PATIENCE) -> None:
    tally.begin(connection, patience)
    while tally.bytes < count:
        data = connection.recv(1 << 16)
        if not data:
            break
        tally.add(data)


def write(
    tally: Tally, connection: _socket.socket, count: int, seed: str, chunk: str, seconds: str = "0", patience: str = str(PATIENCE)
) -> None:
    tally.begin(connection, float(patience)).setsockopt(_socket.IPPROTO_TCP, _socket.TCP_NODELAY, 1)
    data, step = payload(seed, count), int(chunk)
    while not tally.bytes or time.monotonic() - tally.begun < float(seconds):
        for at in range(0, count, step):
            connection.sendall(data[at : at + step])
            tally.add(data[at : at + step])
    connection.shutdown(_socket.SHUT_WR)
    # The receiver closes the connection when it has read everything.
    connection.recv(1)


def send(
    tally: Tally, where: tuple[str, int], count: int, seed: str, chunk: str, seconds: str = "0", patience: str = str(PATIENCE)
) -> None:
    write(tally, accept(where, float(patience)), count, seed, chunk, seconds, patience)


def both(tally: Tally, where: tuple[str, int], count: int, seed: str, chunk: str, patience: str) -> None:
    """A child process writes. The result is that of reading."""
    first, second = (listener((where[0], where[1] + n), float(patience)) for n in (0, 1))
    listening()
    if not posix.fork():
        try:
            write(tally, accepted(second), count, seed, chunk, "0", patience)
        finally:
            posix._exit(0)
    read(tally, accepted(first), count, float(patience))


def connect(tally: Tally, where: tuple[str, int], count: int, *words: str) -> None:
    connection = tally.begin(new_socket(where))
    connection.connect(where)
    write(tally, connection, count, *words)


def recv_datagrams(tally: Tally, where: tuple[str, int], count: int) -> None:
    receiver = bind_datagrams(tally, where)
    while tally.bytes < count:
        tally.add(receiver.recv(1 << 16))


def send_datagrams(tally: Tally, where: tuple[str, int], count: int, seed: str, sizes: str) -> None:
    sender, data = tally.begin(new_socket(where, _socket.SOCK_DGRAM)), payload(seed, count)
    for size in map(int, sizes.split(",")):
        part = data[tally.bytes : tally.bytes + size]
        sender.sendto(part, where)
        tally.add(part)
        # The receiver's buffer does not hold all of them.
        time.sleep(0.2)


class TftpTransfer:
    """One TFTP transfer with ``client``, in lock-step. It answers no repeated packet, because no datagram is lost here."""

    def __init__(self, server: _socket.socket, client: tuple[str, int]) -> None:
        self.server, self.client = server, client

    def send(self, operation: int, *rest: bytes) -> None:
        self.server.sendto(b"".join((operation.to_bytes(2, "big"), *rest)), self.client)

    def wait_for(self, operation: int, block: int) -> bytes:
        """The data of the next packet with this operation and block number; others are ignored."""
        wanted = operation.to_bytes(2, "big") + block.to_bytes(2, "big")
        while True:
            packet, client = self.server.recvfrom(1 << 16)
            if client == self.client and packet[:4] == wanted:
                return packet[4:]


def tftp(tally: Tally, where: tuple[str, int], count: int, seed: str) -> None:
    """RFC 1350, with RFC 2348's block size. The name of a file is its size in bytes."""
    server, data = bind_datagrams(tally, where), payload(seed, count)
    while tally.bytes < count:
        packet, client = server.recvfrom(1 << 16)
        operation, (name, _, *options) = packet[:2], packet[2:].split(b"\0")
        if operation not in (READ, WRITE):
            continue
        transfer, size = TftpTransfer(server, client), int(dict(zip(options[::2], options[1::2])).get(b"blksize", b"512"))
        agreed = b"blksize\0%d\0" % size if b"blksize" in options else b""
        if operation == READ:
            file = data[tally.bytes : tally.bytes + int(name)]
            send_file(transfer, file, size, agreed)
            tally.add(file)
        else:
            receive_file(transfer, tally, size, agreed)


def send_file(transfer: TftpTransfer, data: bytes, size: int, agreed: bytes) -> None:
    if agreed:
        transfer.send(OPTIONS, agreed)
        transfer.wait_for(ACK, 0)
    for number, at in enumerate(range(0, len(data) + 1, size), 1):
        transfer.send(DATA, number.to_bytes(2, "big"), data[at : at + size])
        transfer.wait_for(ACK, number)


def receive_file(transfer: TftpTransfer, tally: Tally, size: int, agreed: bytes) -> None:
    transfer.send(*((OPTIONS, agreed) if agreed else (ACK, b"\0\0")))
    number, last = 1, False
    while not last:
        data = transfer.wait_for(DATA, number)
        tally.add(data)
        transfer.send(ACK, number.to_bytes(2, "big"))
        number, last = number + 1, len(data) < size


READ, WRITE = b"\0\1", b"\0\2"
DATA, ACK, OPTIONS = 3, 4, 6
VERBS = {verb.__name__: verb for verb in (recv, send, both, connect, recv_datagrams, send_datagrams, tftp)}


def main() -> None:
    verb, address, port, count, *words = sys.argv[1:]
    tally, error = Tally(), ""
    try:
        VERBS[verb](tally, (address, int(port)), int(count), *words)
    except OSError as exc:
        error = "%s: %s" % (type(exc).__name__, exc)
    seconds = round(time.monotonic() - tally.begun, 3)
    print(ascii({"bytes": tally.bytes, "md5": tally.digest.hexdigest(), "seconds": seconds, "error": error}), flush=True)


if __name__ == "__main__":
    main()
