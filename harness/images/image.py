"""A finished image: disks, kernel, and what was put into them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from harness.errors import UsageError
from harness.images import store
from harness.images.inputs import Input
from harness.images.store import Entry
from harness.xen.firmware import BIOS

_KIND = "images"


@dataclass(frozen=True)
class ImageDisk:
    """``slot`` is the byte offset of the place for an HVM guest's kernel variables, -1 where there is none."""

    file: Path
    vdev: str
    format: str = "raw"
    slot: int = -1


@dataclass(frozen=True)
class Image:
    """``name`` is how it was asked for."""

    name: str
    entry: Entry

    @property
    def data(self) -> dict[str, Any]:
        return self.entry.manifest

    @property
    def version(self) -> str:
        return str(self.data["version"])

    @property
    def kernel(self) -> Path | None:
        """The kernel as a file of its own, the same that is in the image; None for a disk that came without one."""
        path = self.entry.directory / "kernel"
        return path if path.is_file() else None

    @property
    def root(self) -> str:
        return str(self.data["root"])

    @property
    def types(self) -> tuple[str, ...]:
        """The guest types it can run as."""
        return tuple(self.data["types"])

    @property
    def firmwares(self) -> tuple[str, ...]:
        """The firmwares that can start its first disk as HVM, of ``bios`` and ``uefi``. Older manifests do not say."""
        return tuple(self.data.get("firmwares", [BIOS] if "hvm" in self.types else []))

    @property
    def pygrub(self) -> bool:
        return bool(self.data["pygrub"])

    @property
    def menu_variables(self) -> dict[str, str]:
        return dict(self.data.get("menu_variables", {}))

    @property
    def disks(self) -> tuple[ImageDisk, ...]:
        return tuple(
            ImageDisk(self.entry.directory / str(d["file"]), str(d["vdev"]), str(d["format"]), int(d["slot"]))
            for d in self.data["disks"]
        )

    @property
    def inputs(self) -> tuple[Input, ...]:
        return tuple(Input(**item) for item in self.data["inputs"])


# -- names ------------------------------------------------------------------------------------------------------------


def name_it(name: str, entry: Entry) -> None:
    """Let ``name`` mean this image from now on."""
    directory = store.directory("names")
    part = directory / f".{name}.part"
    part.write_text(entry.key)
    part.replace(directory / name)


def names() -> dict[str, str]:
    """Names with the keys of their images."""
    return {p.name: p.read_text().strip() for p in sorted(store.directory("names").iterdir()) if not p.name.startswith(".")}


def find(wanted: str) -> Image:
    """The image of that name, or whose key begins so, or in that directory (an exported one; its path has a slash).

    Raises UsageError when there is none, or a damaged one.
    """
    if "/" in wanted:
        directory = Path(wanted).resolve()
        if not directory.is_dir():
            raise UsageError(f"image {wanted}: no directory of that name", mend="give one that `fxh image export` has made")
        return _sound(Image(directory.name, store.Entry(directory)), "export it again")
    known = names()
    keys = {entry.key for _, entry in store.entries(_KIND)}
    matching = [known[wanted]] if wanted in known else sorted(key for key in keys if len(wanted) >= 4 and key.startswith(wanted))
    if len(matching) > 1:
        raise UsageError(f"{wanted!r} is the beginning of {len(matching)} images' keys", mend="give more of it")
    if not matching or matching[0] not in keys:
        there = ", ".join(name for name, key in known.items() if key in keys) or "none yet"
        raise UsageError(f"no image {wanted!r}", mend=f"there are: {there}; `fxh image build` makes one")
    entry = store.Entry(store.directory(_KIND) / matching[0])
    return _sound(Image(wanted, entry), "build it again: the same command makes it anew")


def _sound(found: Image, mend: str) -> Image:
    """``found``, if its files are as they were made."""
    damaged = found.entry.damage()
    if damaged:
        raise UsageError(f"image {found.name}: {', '.join(damaged)} is damaged or not there", mend=mend)
    found.entry.touch()
    return found
