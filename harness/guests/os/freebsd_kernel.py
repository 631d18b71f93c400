# SPDX-License-Identifier: BSD-2-Clause
"""A FreeBSD kernel file under another ident, so that a case can tell two kernels apart."""

from __future__ import annotations

import re

from harness.errors import UsageError
from harness.images.kernelfile import banner


def ident(kernel: bytes) -> str:
    """The ident in a FreeBSD kernel's version line. Raises UsageError when it has none."""
    named = banner(kernel)
    if not named:
        raise UsageError("no FreeBSD kernel: it names neither a release nor an ident", hint="give .../boot/kernel/kernel")
    return named.rpartition(" ")[2]


def renamed(kernel: bytes) -> tuple[bytes, str]:
    """The same FreeBSD kernel under another ident, and that ident: only its name tells the two apart.

    ``version[]`` and ``kern_ident[]`` are made by sys/conf/newvers.sh. Raises UsageError when they are not found.
    """
    own = ident(kernel).encode()
    other = own[:-1] + (b"A" if own.endswith(b"B") else b"B")
    changed = kernel.replace(b"\0" + own + b"\0", b"\0" + other + b"\0")
    if changed == kernel:
        raise UsageError(f"the kernel's ident {own.decode()} is not found apart from its version")
    # The ident ends the version, or the directory of the build that the version ends with.
    named = rb"(FreeBSD \d+\.\d+-[^\0]{1,400}?[ /])" + re.escape(own) + rb"(?=\n?\0)"
    return re.sub(named, rb"\g<1>" + other, changed), other.decode()
