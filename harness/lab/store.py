# SPDX-License-Identifier: BSD-2-Clause
"""A built lab in the store. Its files never change."""

from __future__ import annotations

from dataclasses import dataclass

from harness import store

XEN_SYMBOLS = "xen-syms"
"""The symbols of Debian's hypervisor; with lines if Debian keeps them (4.20, not 4.17)."""


@dataclass(frozen=True)
class LabImage(store.Entry):
    """``directory`` holds root.qcow2, xen, xen-syms, vmlinuz, initrd, control/, manifest.json and its checkpoints."""

    def damage(self) -> str:
        """The first missing or truncated file, or "". Causes are a full disk, or a user who deleted files."""
        try:
            sizes = self.manifest["sizes"]
        except (OSError, ValueError, KeyError, TypeError) as exc:
            return f"{store.MANIFEST} cannot be read: {exc}"
        for name, size in sizes.items():
            path = self.directory / name
            found = path.stat().st_size if path.is_file() else None
            if found != size:
                return f"{name} is missing" if found is None else f"{name} has {found} bytes instead of {size}"
        return ""

    @property
    def size(self) -> int:
        """Bytes on disk, without checkpoints."""
        return sum(store.size(path) for path in self.directory.iterdir() if path.name != "checkpoints")
