# SPDX-License-Identifier: BSD-2-Clause
"""Whether Xen answers its debugger stub, gdbsx. Only a Xen built with CONFIG_GDBSX does, which needs DEBUG or EXPERT.

Debian's Xen has neither, but its package has the tool, which then says "Hyp is NOT enabled for gdbsx"
(xen tools/debugger/gdbsx/xg/xg_main.c, _check_hyp()). The tool stops the domain that it is asked about. So a short Python program
in dom0 asks for the debugger's state of dom0 instead, by XEN_DOMCTL_gdbsx_domstatus, which only reads where the
domain runs (xen/arch/x86/gdbsx.c). Xen refuses a domctl of another interface version with EACCES before it looks at it, so the
program tries one version after the other.
"""

from __future__ import annotations

# The numbers are of xen/include/public: 1003 is XEN_DOMCTL_gdbsx_domstatus (domctl.h, whose struct xen_domctl begins with the
# command, the interface version and the domain), 36 is __HYPERVISOR_domctl (xen.h). Version 18 is that of Xen 4.14.
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
# A line: ``gdbsx PATH`` where the tool is there and Xen answers it, ``gdbsx-off PATH`` where Xen does not.
PROBE = f"""
if g=$(command -v gdbsx); then
  if [ "$(timeout 10 python3 -S -E -c '{_ASK}' 2>/dev/null)" = answers ]; then echo "gdbsx $g"; else echo "gdbsx-off $g"; fi
fi
"""
