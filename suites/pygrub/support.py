# SPDX-License-Identifier: BSD-2-Clause
"""Volumes for pygrub and the judgement of its output."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Callable
from dataclasses import dataclass

from harness.oracles.finding import finding
from harness.xen.pygrub import Extract

KERNEL = "boot/kernel/kernel"
MENU = "default=0\ntimeout=0\ntitle FreeBSD\nroot (hd0)\nkernel /boot/kernel/kernel vfs.root.mountfrom=ufs:/dev/xbd0\n"

RunPygrub = Callable[..., Extract]
MakeUfs = Callable[..., bytes]


@dataclass(frozen=True)
class Kernel:
    """Data in place of a kernel: pygrub copies the file and does not examine it."""

    data: bytes

    @property
    def digest(self) -> str:
        """The sha256 of the data."""
        return hashlib.sha256(self.data).hexdigest()


def make_kernel(size: int, seed: int = 1) -> Kernel:
    """Return ``size`` random bytes, the same for the same ``seed``."""
    return Kernel(random.Random(seed).randbytes(size))


def boot_files(kernel: Kernel, menu: str | bytes = MENU, **more: bytes) -> dict[str, bytes]:
    """Return the files of a boot volume: the kernel, menu.lst, and ``more``."""
    text = menu.encode() if isinstance(menu, str) else menu
    return {KERNEL: kernel.data, "boot/grub/menu.lst": text, **more}


def assert_extracted(done: Extract, kernel: Kernel, test: str, reference: str) -> None:
    """Fail unless pygrub extracted exactly the bytes of ``kernel``."""
    observed = (
        "pygrub extracted other bytes than the kernel's" if done.digest("kernel") else f"status {done.status}: {done.complaint}"
    )
    assert done.digest("kernel") == kernel.digest, finding(
        test=test, observed=observed, expected="pygrub extracts the kernel, byte for byte", reference=reference
    )
