# SPDX-License-Identifier: BSD-2-Clause
"""A built lab in the store. Its files never change."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

XEN_SYMBOLS = "xen-syms"
"""The symbols of Debian's hypervisor; with lines if Debian keeps them (4.20, not 4.17)."""


@dataclass(frozen=True)
class LabImage:
    """``directory`` holds root.qcow2, xen, xen-syms, vmlinuz, initrd, control/, manifest.json and its checkpoints."""

    directory: Path

    @property
    def key(self) -> str:
        return self.directory.name

    @property
    def manifest(self) -> dict[str, Any]:
        data: dict[str, Any] = json.loads((self.directory / "manifest.json").read_text())
        return data

    def damage(self) -> str:
        """The first missing or truncated file, or "". Causes are a full disk, or a user who deleted files."""
        try:
            sizes = self.manifest["sizes"]
        except (OSError, ValueError, KeyError, TypeError) as exc:
            return f"manifest.json cannot be read: {exc}"
        for name, size in sizes.items():
            path = self.directory / name
            found = path.stat().st_size if path.is_file() else None
            if found != size:
                return f"{name} is missing" if found is None else f"{name} has {found} bytes instead of {size}"
        return ""

    @property
    def size(self) -> int:
        """Bytes on disk, without checkpoints."""
        return on_disk(self.directory.iterdir())


def on_disk(files: Iterable[Path]) -> int:
    """Bytes on disk of these files. Directories and files that another process has removed do not count."""
    size = 0
    with suppress(FileNotFoundError):  # the directory that ``files`` iterates over
        for file in files:
            with suppress(FileNotFoundError):
                size += file.stat().st_blocks * 512 if file.is_file() else 0
    return size


def used(directory: Path) -> None:
    """Record that an image or a checkpoint is used now, for :mod:`harness.lab.prune`."""
    os.utime(directory)
