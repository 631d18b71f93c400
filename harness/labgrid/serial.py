# SPDX-License-Identifier: BSD-2-Clause
"""Print the output of a NetworkSerialPort, for ports that need more than a TCP connection: RFC 2217, or an exporter as a proxy.

python -m harness.labgrid.serial PROTOCOL HOST PORT SPEED [PROXY]
"""

from __future__ import annotations

import os
import socket
import sys
import tty
from collections.abc import Iterator

import serial
from labgrid.util.ssh import sshmanager

from harness.transport.local import keep_alive

# Seconds for the negotiation of RFC 2217, for a connection, and between two looks at the port.
_NEGOTIATION = 10
_CONNECT = 20
_POLL = 0.2


def rfc2217(host: str, port: int, speed: int) -> Iterator[bytes]:
    """The output of a port whose server speaks RFC 2217, as ser2net does. labgrid's SerialDriver uses the same options."""
    where = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
    url = f"rfc2217://{where}?ign_set_control&timeout={_NEGOTIATION}"
    with serial.serial_for_url(url, baudrate=speed, timeout=_POLL) as console:
        keep_alive(console._socket)  # pyserial has no public name for it
        while True:
            yield console.read(4096)


def raw(host: str, port: int) -> Iterator[bytes]:
    """The bytes of a TCP connection. (pyserial would lose the last ones before its end.)"""
    with socket.create_connection((host, port), timeout=_CONNECT) as connection:
        connection.settimeout(None)
        keep_alive(connection)
        while data := connection.recv(4096):
            yield data


def main() -> None:
    protocol, host, port, speed, *proxy = sys.argv[1:]
    if proxy:
        host, port = "localhost", str(sshmanager.request_forward(proxy[0], host, int(port)))
    if os.isatty(1):
        tty.setraw(1)
    for data in rfc2217(host, int(port), int(speed)) if protocol == "rfc2217" else raw(host, int(port)):
        os.write(1, data)


if __name__ == "__main__":
    try:
        main()
    except (serial.SerialException, OSError) as exc:
        sys.exit(f"{exc}")
