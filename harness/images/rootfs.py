# SPDX-License-Identifier: BSD-2-Clause
"""Reads the configuration of a FreeBSD root file system: kernel, loader variables, root device of fstab.

Sources: loader.conf(5) and stand/defaults/loader.conf (which files, in which order), boot.config(5), fstab(5).
"""

from __future__ import annotations

import re
import zlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from harness.images.ufs import BadFileSystem
from harness.images.volume import Files

LARGEST_KERNEL = 256 << 20
_LARGEST_TEXT = 1 << 20
_MOST_FILES = 64


@dataclass(frozen=True)
class Root:
    """``kernel`` is the path of the kernel that the loader would start, "" if it is missing. ``loader`` has the loader's variables.

    ``fstab`` is the device of ``/`` in /etc/fstab without ``/dev/``, "" if it is missing. ``texts`` has the files that were read,
    by path.
    """

    kernel: str
    loader: Mapping[str, str]
    flags: str
    fstab: str
    texts: Mapping[str, bytes]

    @property
    def serial(self) -> bool:
        """Whether the loader and the kernel of an HVM guest use the serial port (loader.conf(5), boot.config(5))."""
        loader = self.loader
        yes = any(loader.get(name, "").lower() in ("yes", "1", "on") for name in ("boot_serial", "boot_multicons"))
        return yes or "comconsole" in loader.get("console", "") or bool(re.search(r"-\w*[hDP]", self.flags))

    @property
    def modules(self) -> tuple[str, ...]:
        """The kernel modules that the loader would load."""
        return tuple(
            sorted(
                name.removesuffix("_load")
                for name, value in self.loader.items()
                if name.endswith("_load") and value.lower() == "yes"
            )
        )


def is_root(files: Files) -> bool:
    """Whether these files are a root: the kernel starts /sbin/init."""
    return files.exists("/sbin/init") and files.exists("/etc")


def read(files: Files) -> Root:
    """Read the configuration of a root file system. Missing and damaged files count as empty."""
    texts: dict[str, bytes] = {}

    def text(path: str) -> str:
        try:
            texts[path] = files.read(path, _LARGEST_TEXT)
        except BadFileSystem:
            return ""
        return texts[path].decode("utf-8", "replace")

    def names(path: str) -> tuple[str, ...]:
        try:
            return files.names(path)
        except BadFileSystem:
            return ()

    loader = variables(text("/boot/loader.conf"))
    for name in [name for name in names("/boot/loader.conf.d") if _CONF.fullmatch(name)][:_MOST_FILES]:
        loader |= variables(text(f"/boot/loader.conf.d/{name}"))
    loader |= variables(text("/boot/loader.conf.local"))
    flags = text("/boot.config") or text("/boot/config")
    found = ""
    for path in kernels(loader):
        if files.exists(path):
            found = path
            break
    return Root(found, loader, flags, fstab_root(text("/etc/fstab")), texts)


# local.conf
_CONF = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,250}\.conf")
# kernel="kernel.old"    zfs_load=YES    # exec="..."
_ASSIGNMENT = re.compile(r'^[ \t]*([A-Za-z0-9_.]+)[ \t]*=[ \t]*(?:"([^"\n]*)"|([^\s"#]*))(?=[ \t]*(?:#|$))', re.MULTILINE)


def variables(text: str) -> dict[str, str]:
    """The assignments of a loader.conf(5); the last one of each name."""
    return {match[1]: match[2] if match[2] is not None else match[3] for match in _ASSIGNMENT.finditer(text)}


def kernels(loader: Mapping[str, str]) -> tuple[str, ...]:
    """The paths where the loader looks for the kernel: ``kernel`` is a directory of /boot or a path, ``bootfile`` a file in it."""
    directory, file = loader.get("kernel") or "kernel", (loader.get("bootfile") or "kernel").partition(";")[0].partition(",")[0]
    top = directory if directory.startswith("/") else f"/boot/{directory}"
    found = [f"{top}/{file}", f"{top}/{file}.gz"]
    return tuple(found + ([top, f"{top}.gz"] if directory.startswith("/") else []))


# /dev/gpt/rootfs   /       ufs   rw,noatime      1       1
def fstab_root(text: str) -> str:
    """The device of ``/`` in an fstab(5), without ``/dev/``; "" if it is missing."""
    for line in text.splitlines():
        words = line.split()
        if len(words) >= 3 and not words[0].startswith("#") and words[1] == "/":
            return words[0].removeprefix("/dev/")
    return ""


def extract(files: Files, path: str, target: Path) -> None:
    """Write the kernel at ``path`` to ``target``, decompressed if it is in gzip.

    Raises BadFileSystem if it cannot be read or is larger than 256 MiB.
    """
    blocks: Iterable[bytes] = files.blocks(path, LARGEST_KERNEL)
    written = 0
    with target.open("wb") as out:
        for block in _gunzip(path, blocks) if path.endswith(".gz") else blocks:
            written += len(block)
            if written > LARGEST_KERNEL:
                raise BadFileSystem(f"it is larger than {LARGEST_KERNEL >> 20} MiB")
            out.write(block)


def _gunzip(path: str, blocks: Iterable[bytes]) -> Iterator[bytes]:
    stream = zlib.decompressobj(31)
    try:
        for block in blocks:
            yield stream.decompress(block, 1 << 20)
            while stream.unconsumed_tail:
                yield stream.decompress(stream.unconsumed_tail, 1 << 20)
        yield stream.flush()
    except zlib.error as exc:
        raise BadFileSystem(f"{path}: {exc}") from None
    if not stream.eof:
        raise BadFileSystem(f"{path} ends too early")
