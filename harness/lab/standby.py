# SPDX-License-Identifier: BSD-2-Clause
"""The control guest with dom0's kernel, for the cases that may run before the control guest's own kernel is built.

Debian's kernel supports any machine, so its boot takes more than twice as long. It is in the lab already.
"""

from __future__ import annotations

import gzip
import shutil
from pathlib import Path

from harness import store
from harness.lab.store import LabImage

MODULES = "modules.cpio"
"""The archive of the drivers in a lab's ``control/``."""


def obtain(image: LabImage) -> Path:
    """The directory with the kernel and the ramdisk in the store, like that of the control guest; made at first use."""

    def create(work: Path) -> Path:
        _make(image.directory, work)
        return work

    return store.get_or_create("control", f"dom0-{image.key}", create, step="dom0's kernel for the control guest")


def _make(lab: Path, work: Path) -> None:
    # The kernel unpacks concatenated archives in turn (Documentation/driver-api/early-userspace/buffer-format.rst).
    ramdisk = b"".join((lab / "control" / name).read_bytes() for name in ("initrd.cpio", MODULES))
    (work / "initrd").write_bytes(gzip.compress(ramdisk, 1, mtime=0))
    (work / "initrd.cpio").write_bytes(ramdisk)
    for name in ("vmlinuz", "vmlinux"):
        try:
            (work / name).hardlink_to(lab / "vmlinuz")
        except OSError:  # a file system without links
            shutil.copyfile(lab / "vmlinuz", work / name)
