"""A built lab in the store: files that are never written to again."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class LabImage:
    """``directory`` holds root.qcow2, xen, vmlinuz, initrd, control/, manifest.json and its checkpoints."""

    directory: Path

    @property
    def key(self) -> str:
        return self.directory.name

    @property
    def manifest(self) -> dict[str, Any]:
        data: dict[str, Any] = json.loads((self.directory / "manifest.json").read_text())
        return data

    def damage(self) -> str:
        """What is wrong with its files, "" when nothing is: a disk that was full, somebody who tidied up."""
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
        return sum(p.stat().st_blocks * 512 for p in self.directory.iterdir() if p.is_file())


def used(directory: Path) -> None:
    """Note that an image or a checkpoint is used now: what is not used for long is pruned."""
    os.utime(directory)
