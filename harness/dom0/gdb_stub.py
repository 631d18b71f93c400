# SPDX-License-Identifier: BSD-2-Clause
"""Program for dom0: let gdb look into a domain, through Xen's libxenctrl and libxenforeignmemory.

    gdb_stub DOMID

It speaks gdb's remote protocol on stdin and stdout. The domain is paused from the first packet on, and while gdb does not let it run.
gdb reads the registers of each vCPU (a thread of gdb) and the memory. Nothing is written: there are no breakpoints and no steps. It
works with every Xen, for PV, PVH and HVM domains of 64 bits, also for a domain that has crashed.

Sources: the appendix "Remote Protocol" of gdb's manual; Xen's xen/include/public/arch-x86/xen.h and xen-x86_64.h.
"""

from __future__ import annotations

import ctypes
import errno
import glob
import os
import re
import signal
import struct
import sys
from collections.abc import Callable

from harness.dom0.read_memory import Memory, read

# Registers in the order of gdb's packet "g" (org.gnu.gdb.i386.core for 64 bits) without those of the FPU: eight bytes each from rax
# to rip, then four. After each name the offset in struct cpu_user_regs.
_WIDE = (
    ("rax", 80), ("rbx", 40), ("rcx", 88), ("rdx", 96), ("rsi", 104), ("rdi", 112), ("rbp", 32), ("rsp", 152), ("r8", 72), ("r9", 64),
    ("r10", 56), ("r11", 48), ("r12", 24), ("r13", 16), ("r14", 8), ("r15", 0), ("rip", 128),
)  # fmt: skip
_NARROW = (("eflags", 144), ("cs", 136), ("ss", 160), ("ds", 176), ("es", 168), ("fs", 184), ("gs", 192))
_SELECTORS = 0xFFFF
# struct vcpu_guest_context: offsets of user_regs and ctrlreg, and room for the whole.
_USER_REGS, _CTRLREG, _CONTEXT = 520, 4984, 8192
_LA57 = 1 << 12
# Xen allows more vCPUs for some domains, but our domains have no more.
_MOST_VCPUS = 128
_LIBRARIES = (
    "/usr/lib/*/libxenctrl.so.*",
    "/usr/lib/libxenctrl.so.*",
    "/usr/lib64/libxenctrl.so.*",
    "/usr/local/lib/libxenctrl.so.*",
)
# Bytes of one answer.
_LONGEST = 2048
_TARGET = b'<?xml version="1.0"?><target version="1.0"><architecture>i386:x86-64</architecture></target>'
# m ffffffff80000000,40
_MEMORY = re.compile(rb"m([0-9a-f]{1,16}),([0-9a-f]{1,8})")
# qXfer:features:read:target.xml:0,fff
_XFER = re.compile(rb"qXfer:features:read:target\.xml:([0-9a-f]{1,8}),([0-9a-f]{1,8})")
_PACKET = re.compile(rb"\$([^$#]*)#([0-9a-f]{2})")
_REFUSED, _NO_MEMORY = b"E01", b"E0e"
READY = b"ready\n"
"""Printed before the first packet is read."""


class Domain:
    """A domain, seen through libxenctrl. Raises OSError if Xen does not answer or has no such domain."""

    def __init__(self, number: int) -> None:
        self.number = number
        self.memory = Memory(number)
        self.lib, self.handle = _open(number)

    def pause(self) -> None:
        self.memory.pages.clear()
        self.lib.xc_domain_pause(self.handle, self.number)

    def unpause(self) -> None:
        self.lib.xc_domain_unpause(self.handle, self.number)

    def vcpus(self) -> list[int]:
        """The numbers of the vCPUs that have a state."""
        return [vcpu for vcpu in range(_MOST_VCPUS) if self.context(vcpu) is not None]

    def context(self, vcpu: int) -> bytes | None:
        """The struct vcpu_guest_context of a vCPU, or None if it is off or does not exist."""
        return _context(self.lib, self.handle, self.number, vcpu)

    def read(self, cr3: int, cr4: int, address: int, size: int) -> bytes:
        return read(self.memory.page, cr3, address, size, 5 if cr4 & _LA57 else 4)


def _context(lib: ctypes.CDLL, handle: object, domain: int, vcpu: int) -> bytes | None:
    buffer = ctypes.create_string_buffer(_CONTEXT)
    return buffer.raw if lib.xc_vcpu_getcontext(handle, domain, vcpu, buffer) == 0 else None


def _open(domain: int) -> tuple[ctypes.CDLL, ctypes.c_void_p]:
    """The libxenctrl of the running Xen, of those that are installed, and its handle."""
    problem = "there is no libxenctrl"
    for path in sorted({os.path.realpath(name) for pattern in _LIBRARIES for name in glob.glob(pattern)}, reverse=True):
        lib = ctypes.CDLL(path, use_errno=True)
        lib.xc_interface_open.restype = ctypes.c_void_p
        handle = ctypes.c_void_p(lib.xc_interface_open(None, None, 0))
        if handle and _context(lib, handle, domain, 0) is not None:
            return lib, handle
        problem = "%s: domain %d: %s" % (path, domain, os.strerror(ctypes.get_errno()))
    raise OSError(errno.ENODEV, problem)


class Stub:
    """Answers gdb. ``domain`` is a :class:`Domain`."""

    def __init__(self, domain: Domain) -> None:
        self.domain = domain
        self.held = False
        """Whether we have paused the domain."""
        self.rest = b""
        self.vcpu = 0
        self.acknowledges = True

    def feed(self, data: bytes) -> bytes:
        """The answer to bytes from gdb."""
        answer = b""
        self.rest += data
        while self.rest:
            if self.rest[:1] == b"\x03":  # gdb interrupts
                self.rest = self.rest[1:]
                self.hold()
                answer += _packet(self.stopped(2))
                continue
            match = _PACKET.match(self.rest)
            if match is None:
                if self.rest.rfind(b"$") == 0 and len(self.rest) <= 2 * _LONGEST:
                    break
                self.rest = self.rest[1:]  # an acknowledgement, or a part of a packet whose gdb was killed
                continue
            self.rest = self.rest[match.end() :]
            if self.acknowledges:
                answer += b"+" if sum(match[1]) & 255 == int(match[2], 16) else b"-"
            if sum(match[1]) & 255 == int(match[2], 16):
                try:
                    reply = self.answer(match[1])
                except ValueError:  # no hexadecimal number
                    reply = _REFUSED
                answer += _packet(reply) if reply is not None else b""
        return answer

    def answer(self, packet: bytes) -> bytes | None:
        """The reply to a packet; None for the one that lets the domain run. An empty reply means that the packet is unknown."""
        if packet == b"QStartNoAckMode":
            self.acknowledges = False
            return b"OK"
        if packet[:1] in (b"D", b"k"):
            self.release()
            self.acknowledges = True  # for the next gdb
            return b"OK"
        if packet[:1] == b"c":
            self.release()
            return None
        self.hold()
        for pattern, reply in ((_MEMORY, self.memory), (_XFER, self.xfer)):
            match = pattern.match(packet)
            if match:
                return reply(int(match[1], 16), int(match[2], 16))
        if packet[:2] in (b"Hg", b"Hc"):
            return self.select(packet[2:])
        if packet[:1] == b"T":
            return self.select(packet[1:])
        replies: dict[bytes, Callable[[], bytes]] = {
            b"?": lambda: self.stopped(5),
            b"g": self.registers,
            b"qC": lambda: b"QC%x" % (self.vcpu + 1),
            b"qfThreadInfo": lambda: b"m" + b",".join(b"%x" % (vcpu + 1) for vcpu in self.domain.vcpus()),
            b"qsThreadInfo": lambda: b"l",
            b"qAttached": lambda: b"1",
        }
        if packet in replies:
            return replies[packet]()
        if packet.startswith(b"qSupported"):
            return b"PacketSize=%x;qXfer:features:read+;QStartNoAckMode+" % (2 * _LONGEST)
        if packet.startswith(b"qThreadExtraInfo,"):
            return (b"vCPU %d" % (int(packet.partition(b",")[2], 16) - 1)).hex().encode()
        return _REFUSED if packet[:1] in (b"G", b"M", b"P", b"X", b"s") else b""

    def hold(self) -> None:
        if not self.held:
            self.domain.pause()
            self.held = True

    def release(self) -> None:
        if self.held:
            self.domain.unpause()
            self.held = False

    def stopped(self, number: int) -> bytes:
        return b"T%02xthread:%x;" % (number, self.vcpu + 1)

    def select(self, thread: bytes) -> bytes:
        """Use a vCPU from here on: thread N is vCPU N - 1; 0 and -1 mean any. Raises ValueError for text that is not a number."""
        number = int(thread or b"0", 16)
        if number > 0:
            if number > _MOST_VCPUS or self.domain.context(number - 1) is None:
                return _REFUSED
            self.vcpu = number - 1
        return b"OK"

    def registers(self) -> bytes:
        context = self.domain.context(self.vcpu)
        if context is None:
            return _REFUSED
        regs = context[_USER_REGS:]
        wide = b"".join(regs[at : at + 8] for _, at in _WIDE)
        narrow = b"".join(
            struct.pack("<I", struct.unpack_from("<I", regs, at)[0] & (_SELECTORS if name != "eflags" else 0xFFFFFFFF))
            for name, at in _NARROW
        )
        return (wide + narrow).hex().encode()

    def memory(self, address: int, size: int) -> bytes:
        context = self.domain.context(self.vcpu)
        if context is None:
            return _NO_MEMORY
        cr3, cr4 = (struct.unpack_from("<Q", context, _CTRLREG + 8 * number)[0] for number in (3, 4))
        return self.domain.read(cr3, cr4, address, min(size, _LONGEST)).hex().encode() or _NO_MEMORY

    def xfer(self, offset: int, size: int) -> bytes:
        part = _TARGET[offset : offset + size]
        return (b"m" if offset + size < len(_TARGET) else b"l") + part


def _packet(text: bytes) -> bytes:
    return b"$%s#%02x" % (text, sum(text) & 255)


def main() -> None:
    for number in (signal.SIGHUP, signal.SIGTERM):
        signal.signal(number, lambda number, frame: sys.exit(1))
    try:
        stub = Stub(Domain(int(sys.argv[1])))
    except OSError as exc:
        sys.exit(str(exc))
    os.write(1, READY)
    try:
        while True:
            data = os.read(0, 4096)
            if not data:
                break
            answer = stub.feed(data)
            while answer:
                answer = answer[os.write(1, answer) :]
    finally:
        stub.release()


if __name__ == "__main__":
    main()
