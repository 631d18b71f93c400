# SPDX-License-Identifier: BSD-2-Clause
"""QEMU's gdb stub: it debugs the CPUs of a lab's machine, and so the hypervisor, dom0 and the guests that run on them."""

from __future__ import annotations

import contextlib
import socket
from pathlib import Path

from harness.errors import LabDead
from harness.lab.machine import Machine

# The name that QEMU gives the stub's character device (QEMU gdbstub/softmmu.c, gdbserver_start()).
_DEVICE = "gdb"
# The packet "detach" of gdb's remote protocol with its checksum: it removes all breakpoints and continues the machine.
_DETACH = b"$D#44"
# Seconds for QEMU's answer to it.
_ANSWER = 2.0


class GdbStub:
    """The stub of ``machine``, at a Unix socket in the machine's own directory: a TCP port would be open to every local user.

    QEMU stops the machine when a debugger connects, and continues it when the debugger detaches.
    """

    def __init__(self, machine: Machine) -> None:
        self._machine = machine
        self.path = machine.sockets / "gdb"

    def open(self) -> Path:
        """Open the stub. Returns the path of its socket. Raises LabDead if QEMU refuses."""
        said = self._machine.monitor(f"gdbserver unix:{self._machine.seen_sockets / self.path.name},server=on,wait=off")
        if not self.path.exists():
            raise LabDead(f"QEMU does not open its gdb stub: {said.strip() or self.path}")
        return self.path

    def attached(self) -> bool:
        """Whether a debugger is connected. Raises LabDead."""
        # disconnected:unix:/run/fxh/lab/gdb,server=on
        devices = self._machine.running().command("query-chardev")
        return any(row["label"] == _DEVICE and not row["filename"].startswith("disconnected:") for row in devices)

    def close(self) -> None:
        """Remove all breakpoints, close the stub and let the machine run. Raises LabDead."""
        # A debugger that was killed has left its breakpoints.
        with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as link:
            link.settimeout(_ANSWER)
            link.connect(str(self.path))
            link.sendall(_DETACH)
            link.recv(64)
        self._machine.monitor("gdbserver none")
        self.path.unlink(missing_ok=True)
        if self._machine.running().command("query-status")["status"] != "running":
            self._machine.running().command("cont")
