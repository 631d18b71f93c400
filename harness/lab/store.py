# SPDX-License-Identifier: BSD-2-Clause
"""A built lab in the store: files that are never written to again."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from contextlib import suppress
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
        return on_disk(self.directory.iterdir())


def on_disk(files: Iterable[Path]) -> int:
    """Bytes that these files take, as far as they are there: others remove, too. Directories count nothing."""
    size = 0
    with suppress(FileNotFoundError):  # their directory
        for file in files:
            with suppress(FileNotFoundError):
                size += file.stat().st_blocks * 512 if file.is_file() else 0
    return size


def used(directory: Path) -> None:
    """Note that an image or a checkpoint is used now: what is not used for long is pruned."""
    os.utime(directory)
