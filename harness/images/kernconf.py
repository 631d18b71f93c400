# SPDX-License-Identifier: BSD-2-Clause
"""Kernel configurations: those of the harness, which reduce the tree's GENERIC (TRIM), and those of the tree or the user."""

from __future__ import annotations

import re
import tomllib
from dataclasses import dataclass
from pathlib import Path

from harness import paths
from harness.errors import UsageError
from harness.images.inputs import text_hash
from harness.images.srctree import SourceTree

# device		ahci		# AHCI-compatible SATA controllers
_DEVICE = re.compile(r"^device\s+(\w+)", re.MULTILINE)
# options 	SCSI_DELAY=5000		# Delay (in ms) before probing SCSI
_OPTION = re.compile(r"^options\s+(\w+)", re.MULTILINE)
# include		GENERIC
_INCLUDE = re.compile(r'^include\s+"?([\w.-]+)"?', re.MULTILINE)


@dataclass(frozen=True)
class KernConf:
    """A configuration. ``files`` go into its own directory (KERNCONFDIR); empty for a configuration of the tree."""

    name: str
    files: tuple[tuple[str, str], ...]
    origin: str

    @property
    def hash(self) -> str:
        return text_hash("\0".join(f"{name}\0{text}" for name, text in (("", self.name), *self.files)))


def trim(generic: str, drop_devices: frozenset[str], drop_options: frozenset[str], add: tuple[str, ...]) -> str:
    """Return the lines that reduce a GENERIC: ``nodevice`` and ``nooptions`` for each listed name, then ``add``.

    A name that this GENERIC lacks gets no line, so the file shows exactly which names were dropped. config(8) would ignore such a
    line (usr.sbin/config/config.y, rmdev_schedule).
    """
    lines = [f"nodevice\t{name}" for name in dict.fromkeys(_DEVICE.findall(generic)) if name in drop_devices]
    lines += [f"nooptions\t{name}" for name in dict.fromkeys(_OPTION.findall(generic)) if name in drop_options]
    return "\n".join(["# Made from this tree's GENERIC.", *lines, *add]) + "\n"


def load(tree: SourceTree, wanted: str) -> KernConf:
    """The configuration ``wanted``: one of the harness, of the tree, or a file of the user. Raises UsageError."""
    ours = shipped()
    if wanted in ours:
        return KernConf(wanted, _with_includes(tree, ours, wanted), f"images/kernels/{wanted}")
    file = Path(wanted).expanduser()
    if "/" in wanted:
        if not file.is_file():
            raise UsageError(f"{wanted}: no such kernel configuration", hint="give a file, or a name of sys/amd64/conf")
        return KernConf(file.name, _with_includes(tree, {**ours, file.name: file}, file.name), str(file.absolute()))
    if not (tree.path / "sys/amd64/conf" / wanted).is_file():
        raise UsageError(
            f"no kernel configuration {wanted}: neither among ours ({', '.join(ours)}) nor in {tree.path}/sys/amd64/conf",
            hint="name one of those, or give the path of a file",
        )
    return KernConf(wanted, (), f"{tree.path}/sys/amd64/conf/{wanted}")


def shipped() -> dict[str, Path]:
    """Our configurations by name."""
    return {path.name: path for path in sorted((paths.project() / "images/kernels").iterdir()) if path.is_file()}


def _with_includes(tree: SourceTree, known: dict[str, Path], name: str) -> tuple[tuple[str, str], ...]:
    """The file and its includes, without those of the tree."""
    found, todo = {}, [name]
    while todo:
        current = todo.pop()
        text = _trim_of(tree) if current == "TRIM" else known[current].read_text()
        found[current] = text
        todo += [other for other in _INCLUDE.findall(text) if (other in known or other == "TRIM") and other not in found]
    return tuple(sorted(found.items()))


def _trim_of(tree: SourceTree) -> str:
    data = tomllib.loads((paths.project() / "images/freebsd/trim.toml").read_text())
    generic = tree.read("sys/amd64/conf/GENERIC")
    return trim(generic, frozenset(data["drop_devices"]), frozenset(data["drop_options"]), tuple(data["add"]))
