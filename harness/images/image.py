# SPDX-License-Identifier: BSD-2-Clause
"""A finished image: disks, kernel, inputs; and the names (tags) of images."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from harness import osversion, store
from harness.errors import UsageError
from harness.images import entries, kernelfile
from harness.images.entries import StoreEntry
from harness.images.inputs import Input
from harness.osversion import OSVersion

_KIND = "images"


@dataclass(frozen=True)
class ImageDisk:
    """``slot`` is the offset (bytes) of the place for an HVM guest's kernel variables, -1 if there is no such place."""

    file: Path
    vdev: str
    format: str = "raw"
    slot: int = -1


@dataclass(frozen=True)
class Image:
    """``name`` is the name or key in the request. ``disk`` is the file of its only disk if that is not in the entry, ``given`` the
    file that the user gave for it."""

    name: str
    entry: StoreEntry
    disk: Path | None = None
    given: Path | None = None

    @property
    def data(self) -> dict[str, Any]:
        return self.entry.manifest

    @property
    def version(self) -> str:
        """The kernel's release, for example ``15.1``; ``unknown`` for a disk without a kernel."""
        return str(self.data["version"])

    @cached_property
    def os_version(self) -> OSVersion:
        """The kernel's version. Manifests from before November 2026 lack branch and osreldate, so those come from the kernel file."""
        if "osreldate" in self.data or self.kernel is None:
            name = "-".join(filter(None, (self.version, str(self.data.get("branch", "")))))
            return osversion.parse(name, int(self.data.get("osreldate", 0)))
        return kernelfile.os_version(self.kernel.read_bytes())

    @property
    def world_version(self) -> str:
        """The release of the world; the kernel's if the manifest has no other."""
        return str(self.data.get("world_version") or self.version)

    @property
    def release(self) -> str:
        """See :func:`release_of`."""
        return release_of(self.data)

    @property
    def kernel(self) -> Path | None:
        """The kernel of the image as a separate file; None for a disk without a kernel."""
        path = self.entry.directory / "kernel"
        return path if path.is_file() else None

    @property
    def root(self) -> str:
        """The guest's root: a device (``xbd0p2``), or a dataset (``zroot/ROOT/default``)."""
        return str(self.data["root"])

    @property
    def root_device(self) -> str:
        """The device that holds the root file system or its pool."""
        return str(self.data.get("root_device") or self.root)

    @property
    def mountfrom(self) -> str:
        """The value of vfs.root.mountfrom: ``ufs:/dev/xbd0p2`` or ``zfs:zroot/ROOT/default``."""
        return str(self.data.get("mountfrom") or f"ufs:/dev/{self.root}")

    @property
    def zfs(self) -> bool:
        """Whether the root is a ZFS dataset."""
        return self.mountfrom.startswith("zfs:")

    @property
    def firmwares(self) -> tuple[str, ...]:
        """The firmwares that can start it as an HVM guest: a subset of ``("bios", "uefi")``."""
        return tuple(self.data.get("firmwares", ["bios"] if "hvm" in self.types else []))

    @property
    def types(self) -> tuple[str, ...]:
        """The guest types that it supports."""
        return tuple(self.data["types"])

    @property
    def pygrub(self) -> bool:
        return bool(self.data["pygrub"])

    @property
    def menu_variables(self) -> dict[str, str]:
        return dict(self.data.get("menu_variables", {}))

    @property
    def disks(self) -> tuple[ImageDisk, ...]:
        return tuple(
            ImageDisk(self.disk or self.entry.directory / str(d["file"]), str(d["vdev"]), str(d["format"]), int(d["slot"]))
            for d in self.data["disks"]
        )

    @property
    def inputs(self) -> tuple[Input, ...]:
        return tuple(Input(**item) for item in self.data["inputs"])


def about(manifest: Mapping[str, Any]) -> str:
    """One line that describes an entry of the store: its source, or the release, layout and types of an image."""
    made = f"FreeBSD {release_of(manifest)}, {manifest.get('layout')}, {'/'.join(manifest.get('types', []))}"
    return str(manifest.get("what", made))


def items() -> list[store.Item]:
    """All items that garbage collection may remove: images, their parts, and caches."""
    found = store.items(*entries.KINDS, *entries.CACHES)
    known: dict[str, list[str]] = {}
    for name, key in names().items():
        known.setdefault(key, []).append(name)
    return [replace(item, about=_about(item, known.get(item.path.name, []))) for item in found]


def _about(item: store.Item, tags: list[str]) -> str:
    try:
        text = about(StoreEntry(item.path).manifest)
    except (OSError, ValueError):
        return ""
    return f"{','.join(tags)}: {text}" if tags and item.kind == _KIND else text


def release_of(manifest: Mapping[str, Any]) -> str:
    """The FreeBSD release of an image: ``15.1``, or ``15.1 on world 13.2`` for another kernel on a world."""
    kernel, world = str(manifest.get("version")), str(manifest.get("world_version") or "")
    return f"{kernel} on world {world}" if world and world != kernel else kernel


# -- names ------------------------------------------------------------------------------------------------------------


def tag(name: str, entry: StoreEntry) -> None:
    """Give the image the name ``name``; an older image of that name loses it."""
    directory = store.directory("names")
    part = directory / f".{name}.part"
    part.write_text(entry.key)
    part.replace(directory / name)


def names() -> dict[str, str]:
    """The names, each with the key of its image."""
    return {p.name: p.read_text().strip() for p in sorted(store.directory("names").iterdir()) if not p.name.startswith(".")}


def find(wanted: str) -> Image:
    """The image with this name, this beginning of a key, or in this directory (exported; the path has a slash).

    Raises UsageError if it is missing or damaged.
    """
    if "/" in wanted:
        directory = Path(wanted).resolve()
        if not directory.is_dir():
            raise UsageError(f"image {wanted}: no directory of that name", hint="give a directory written by `fxh image export`")
        return _checked(Image(directory.name, entries.StoreEntry(directory)), "export it again")
    known = names()
    keys = {entry.key for _, entry in entries.listing(_KIND)}
    matching = [known[wanted]] if wanted in known else sorted(key for key in keys if len(wanted) >= 4 and key.startswith(wanted))
    if len(matching) > 1:
        raise UsageError(f"{wanted!r} is the beginning of {len(matching)} images' keys", hint="give more characters of the key")
    if not matching or matching[0] not in keys:
        existing = ", ".join(name for name, key in known.items() if key in keys)
        hint = f"use one of {existing}, or build one: fxh image build" if existing else "build one: fxh image build"
        raise UsageError(f"no image {wanted!r}", hint=hint)
    entry = entries.StoreEntry(store.directory(_KIND) / matching[0])
    return _checked(Image(wanted, entry), "build it again with the same command")


def _checked(found: Image, hint: str) -> Image:
    """Return ``found`` and mark it used. Raises UsageError if its files are damaged."""
    damaged = found.entry.damage()
    if damaged:
        raise UsageError(f"image {found.name}: {', '.join(damaged)} is damaged or missing", hint=hint)
    found.entry.mark_used()
    return found
