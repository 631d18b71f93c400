# SPDX-License-Identifier: BSD-2-Clause
"""A FreeBSD kernel file under another ident, so that a case can tell two kernels apart."""

from __future__ import annotations

import re

from harness.errors import UsageError
from harness.images.kernelfile import banner


def ident(kernel: bytes) -> str:
    """The ident in a FreeBSD kernel's version line. Raises UsageError if there is none."""
    named = banner(kernel)
    if not named:
        raise UsageError("not a FreeBSD kernel: the file names neither a release nor an ident", hint="give .../boot/kernel/kernel")
    return named.rpartition(" ")[2]


def renamed(kernel: bytes) -> tuple[bytes, str]:
    """The same FreeBSD kernel under another ident, and that ident.

    sys/conf/newvers.sh writes ``version[]`` and ``kern_ident[]``. Raises UsageError if they are not found.
    """
    own = ident(kernel).encode()
    other = own[:-1] + (b"A" if own.endswith(b"B") else b"B")
    changed = kernel.replace(b"\0" + own + b"\0", b"\0" + other + b"\0")
    if changed == kernel:
        raise UsageError(f"the kernel has its ident {own.decode()} in its version only, not in kern_ident")
    # FreeBSD 13.2-RELEASE XENA     FreeBSD 13.2-RELEASE-p1 #0 ...: root@host:/usr/obj/usr/src/amd64.amd64/sys/XENA

    named = rb"(FreeBSD \d+\.\d+-[^\0]{1,400}?[ /])" + re.escape(own) + rb"(?=\n?\0)"
    return re.sub(named, rb"\g<1>" + other, changed), other.decode()
