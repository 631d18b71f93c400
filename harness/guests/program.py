# SPDX-License-Identifier: BSD-2-Clause
"""Small C programs for a guest, compiled on this machine. A guest needs no compiler, and its image none of the programs."""

from __future__ import annotations

import subprocess
from pathlib import Path

from harness.errors import BuildError, CannotRun
from harness.guests import files
from harness.guests.guest import Guest

# No library, and text and data in one small segment. A stack protector would need a library.
_FLAGS = (
    "-m64", "-Os", "-ffreestanding", "-fno-stack-protector", "-fno-pic", "-fcf-protection=none",
    "-fno-asynchronous-unwind-tables", "-nostdlib", "-static", "-no-pie", "-s", "-Wl,-N", "-Wl,--build-id=none",
)  # fmt: skip
# Offset of the field in an ELF header (e_ident[EI_OSABI], gabi, "ELF Identification").
_EI_OSABI = 7


def compiled(source: Path, osabi: int, work: Path) -> bytes:
    """The program ``source`` for the ABI ``osabi`` (GuestOS.elf_osabi), which the compiler sees as ELF_OSABI. ``work`` takes its file.

    Raises CannotRun without a compiler for x86-64, BuildError if the program does not compile.
    """
    target = work / source.stem
    words = ["cc", *_FLAGS, f"-DELF_OSABI={osabi}", "-o", str(target), str(source)]
    hint = "apt-get install gcc, on a machine with x86-64"
    try:
        probe = subprocess.run(
            ["cc", "-m64", "-E", "-x", "c", "/dev/null"], capture_output=True, check=False, stdin=subprocess.DEVNULL
        )
    except FileNotFoundError as exc:
        raise CannotRun(f"{source.name} needs a C compiler, and there is no cc", hint=hint) from exc
    if probe.returncode:
        raise CannotRun(f"{source.name} needs a C compiler for x86-64, and cc compiles for another machine", hint=hint)
    done = subprocess.run(words, capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL)
    if done.returncode:
        raise BuildError(f"{source}: {done.stderr.strip()}", hint="see the compiler's messages")
    # FreeBSD finds a program's ABI in this byte (sys/kern/imgact_elf.c); linkers for other targets leave it 0.
    data = bytearray(target.read_bytes())
    data[_EI_OSABI] = osabi
    return bytes(data)


def install(guest: Guest, source: Path, path: str) -> None:
    """Compile ``source`` and copy it to ``path`` in the guest. Raises as :func:`compiled`, and GuestCommandFailed."""
    files.put(guest, compiled(source, guest.os.elf_osabi, guest.directory), path, guest.directory)
    guest.sh(f"chmod 755 {path}")
