# SPDX-License-Identifier: BSD-2-Clause
"""Print what a NetworkSerialPort says, for ports that need more than a TCP connection: RFC 2217, or an exporter as a proxy.

python -m harness.labgrid.serial PROTOCOL HOST PORT SPEED [PROXY]
"""

from __future__ import annotations

import os
import sys
import tty

import serial
from labgrid.util.ssh import sshmanager

# Seconds for the negotiation of RFC 2217, and between two looks at the port.
_NEGOTIATION = 10
_POLL = 0.2


def url(protocol: str, host: str, port: str) -> str:
    """The port in the form of pyserial. labgrid's own SerialDriver uses the same options."""
    where = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
    if protocol == "rfc2217":
        return f"rfc2217://{where}?ign_set_control&timeout={_NEGOTIATION}"
    return f"socket://{where}"


def main() -> None:
    protocol, host, port, speed, *proxy = sys.argv[1:]
    if proxy:
        host, port = "localhost", str(sshmanager.request_forward(proxy[0], host, int(port)))
    if os.isatty(1):
        tty.setraw(1)
    with serial.serial_for_url(url(protocol, host, port), baudrate=int(speed), timeout=_POLL) as console:
        while True:
            if data := console.read(4096):
                os.write(1, data)


if __name__ == "__main__":
    try:
        main()
    except (serial.SerialException, OSError) as exc:
        sys.exit(f"{exc}")
