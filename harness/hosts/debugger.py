# SPDX-License-Identifier: BSD-2-Clause
"""The debugger stubs of a host: where gdb connects, and what they debug there."""

from __future__ import annotations

import shlex
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from harness.deadline import Deadline
from harness.transport import Transport
from harness.xen import gdbsx

_PORT = 9999
# Debian's gdb does not know the ABI of FreeBSD's programs, and takes a FreeBSD kernel for a 32-bit one. A kernel needs no ABI.
_ABI = "set osabi none"


@dataclass(frozen=True)
class Debugger:
    """A stub that is open, or that the command ``start`` opens."""

    name: str
    """One word that tells the stubs of a host apart."""
    covers: str
    """What it debugs and what it stops, as a sentence without its period."""
    target: str
    """The argument of gdb's ``target remote``: a Unix socket or ``HOST:PORT``."""
    start: str = ""
    """The command that starts the stub, for another terminal; empty if the stub runs already."""
    more: tuple[Path, ...] = ()
    """Files with further symbols, such as those of the hypervisor."""
    attached: Callable[[], bool] = lambda: False
    """Whether a debugger is connected."""

    def command(self, symbols: Path | None) -> tuple[str, ...]:
        """The command line that starts gdb on the stub. ``symbols`` is an ELF file with the symbols of the guest's kernel."""
        argv = ["gdb", "-q", "-iex", _ABI, *([str(symbols)] if symbols else [])]
        if self.more:  # without questions
            commands = ["set confirm off", *(f"add-symbol-file {_quoted(path)}" for path in self.more), "set confirm on"]
            argv += [word for command in commands for word in ("-ex", command)]
        return (*argv, "-ex", f"target remote {self.target}")

    def line(self, symbols: Path | None) -> str:
        """:meth:`command` as a line for a shell."""
        return shlex.join(self.command(symbols))


def _quoted(path: Path) -> str:
    """A file as one argument of a gdb command. ``target remote`` takes the rest of its line as it is."""
    text = str(path).replace("\\", "\\\\").replace('"', '\\"')
    return f'"{text}"'


def gdbsx_stub(transport: Transport, domain: int, address: str) -> tuple[Debugger, ...]:
    """gdbsx in dom0 for ``domain``; empty if this Xen does not support it. ``address`` is dom0 for ssh, or ``local``. Raises as Transport.run()."""
    word, _, tool = transport.run(["sh", "-c", gdbsx.PROBE + "true"], Deadline(20)).text.strip().partition(" ")
    if word != "gdbsx":
        return ()
    command = f"{tool} -a {domain} 64 {_PORT}"
    start = command if address == "local" else f"ssh -L {_PORT}:localhost:{_PORT} {address} {command}"
    covers = f"domain {domain}, one thread for each vCPU, with breakpoints; gdb stops this domain alone"
    return (Debugger("gdbsx", covers, f"localhost:{_PORT}", start),)
