# SPDX-License-Identifier: BSD-2-Clause
"""Detects whether Xen supports its debugger stub, gdbsx: it must be built with CONFIG_GDBSX, which needs DEBUG or EXPERT.

Debian's Xen has neither. Its package has the tool gdbsx, which then prints "Hyp is NOT enabled for gdbsx"
(xen tools/debugger/gdbsx/xg/xg_main.c, _check_hyp()). The tool stops the domain that it queries, so it cannot serve as a probe.
Instead a short Python program in dom0 queries the debugger state of dom0 with XEN_DOMCTL_gdbsx_domstatus, which only reads the
state of the domain (xen/arch/x86/gdbsx.c). Xen refuses a domctl of another interface version with EACCES, so the program tries
every version.
"""

from __future__ import annotations

# From xen/include/public: 1003 is XEN_DOMCTL_gdbsx_domstatus (domctl.h; its struct xen_domctl begins with the command, the interface
# version and the domain), 36 is __HYPERVISOR_domctl (xen.h). Xen 4.14 has version 18.
_ASK = """
import ctypes, errno, struct
lib = ctypes.CDLL("libxencall.so.1", use_errno=True)
lib.xencall_open.restype = lib.xencall_alloc_buffer.restype = ctypes.c_void_p
handle = ctypes.c_void_p(lib.xencall_open(None, 0))
at = lib.xencall_alloc_buffer(handle, ctypes.c_size_t(4096)) if handle else None
for version in range(18, 64) if at else ():
    ctypes.memset(at, 0, 4096)
    ctypes.memmove(at, struct.pack("<IIH", 1003, version, 0), 10)
    if lib.xencall1(handle, 36, ctypes.c_uint64(at)) == 0:
        print("answers")
    if ctypes.get_errno() != errno.EACCES:
        break
    ctypes.set_errno(0)
"""
# Prints ``gdbsx PATH`` if the tool exists and Xen supports it, ``gdbsx-off PATH`` if Xen does not.
PROBE = f"""
if g=$(command -v gdbsx); then
  if [ "$(timeout 10 python3 -S -E -c '{_ASK}' 2>/dev/null)" = answers ]; then echo "gdbsx $g"; else echo "gdbsx-off $g"; fi
fi
"""
