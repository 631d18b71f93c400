# SPDX-License-Identifier: BSD-2-Clause
"""The slot: the place in an image for kernel variables of an HVM guest, which its loader passes to the kernel.

On UFS the slot is /boot/loader.conf.local, which the builder writes with a fixed size in one piece, and whose offset it records.
On ZFS it is the boot environment of the pool (harness.images.bootenv), because the checksum of a file's block is in another block.
A run writes to a copy of the image.
"""

from __future__ import annotations

import mmap
import os
from collections.abc import Mapping
from pathlib import Path

from harness import store
from harness.errors import BuildError, UsageError
from harness.images import bootenv, tables
from harness.images.inputs import combine, extents

# Smaller than any UFS block, so the file is in one piece.
SIZE = 4096
# A copy with variables takes a tenth of a second, so the store keeps this many.
_VARIANTS = 12
PATH = "./boot/loader.conf.local"
_HEAD = "# fxh: variables of this run\n"
KERNEL_PREFIXES = ("debug.", "hw.", "kern.", "machdep.", "net.", "vfs.", "vm.")
"""The prefixes of kernel variables; the loader's own variables have others."""


def text(variables: Mapping[str, str]) -> bytes:
    """The content of the file. Raises UsageError for values that loader.conf cannot express."""
    lines = [_HEAD]
    for name, value in variables.items():
        if '"' in value or "\n" in value:
            raise UsageError(
                f"kernel variable {name}={value!r}: loader.conf cannot express a quote or a line end", hint="use another value"
            )
        lines.append(f'{name}="{value}"\n')
    data = "".join(lines).encode()
    if len(data) > SIZE:
        raise UsageError(f"kernel variables of {len(data)} bytes", hint=f"an HVM image has room for {SIZE}")
    padding = bytearray(b"#" * (SIZE - len(data)))
    # The Forth loader's line buffer is shorter than the padding, so break it into lines.
    for at in range(len(padding) - 1, 0, -64):
        padding[at] = 10
    return data + bytes(padding)


def locate(image: Path) -> int:
    """The offset of the file in an image that contains ``text({})``. Raises BuildError unless it is there exactly once."""
    wanted = text({})
    with image.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        at = -1
        for begin, end in extents(file.fileno()):
            found = data.find(wanted, begin, end)
            while found >= 0:
                if at >= 0:
                    raise BuildError(f"{image.name}: the disk has loader.conf.local twice")
                at = found
                found = data.find(wanted, found + 1, end)
    if at < 0:
        raise BuildError(f"{image.name}: loader.conf.local is not in one piece")
    return at


def fill_pool(vdev: Path, variables: Mapping[str, str]) -> None:
    """Write ``variables`` to the boot environment of the pool on ``vdev``. Raises UsageError if they do not fit."""
    with vdev.open("r+b") as file:
        os.pwrite(file.fileno(), bootenv.block(variables), bootenv.OFFSET)


def locate_pool(image: Path) -> int:
    """The offset of the boot environment of the pool on the first freebsd-zfs partition of a GPT, -1 if it is missing."""
    with image.open("rb") as file:
        start = tables.gpt_start(os.pread(file.fileno(), tables.SECTOR * tables.GPT_FIRST, 0), "freebsd-zfs")
        at = start * tables.SECTOR + bootenv.OFFSET
        return at if start >= 0 and bootenv.is_block(os.pread(file.fileno(), bootenv.SIZE, at)) else -1


def content(image: Path, offset: int, variables: Mapping[str, str]) -> bytes:
    """The bytes to write at ``offset`` of ``image``, in the format of the slot there.

    Raises BuildError if there is no slot, UsageError if the variables do not fit.
    """
    with image.open("rb") as file:
        found = os.pread(file.fileno(), bootenv.SIZE, offset)
    if found.startswith(_HEAD.encode()):
        return text(variables)
    if bootenv.is_block(found):
        return bootenv.block(variables)
    raise BuildError(f"{image.name}: no place for kernel variables at byte {offset}", hint="build the image again")


def write_copy(image: Path, offset: int, variables: Mapping[str, str], target: Path) -> Path:
    """Write a sparse copy of ``image`` with ``variables`` in the slot at ``offset`` to ``target``. Raises BuildError without a slot."""
    data = content(image, offset, variables)
    part = target.with_name(f"{target.name}.{os.getpid()}")
    with part.open("wb") as new:
        new.truncate(image.stat().st_size)
        copy_data(image, new.fileno(), 0)
        os.pwrite(new.fileno(), data, offset)
    part.replace(target)
    return target


def copy_data(source: Path, descriptor: int, offset: int) -> None:
    """Copy ``source`` without its holes into an open file at ``offset``."""
    with source.open("rb") as file:
        for begin, end in extents(file.fileno()):
            at = begin
            while at < end:
                block = os.pread(file.fileno(), min(1 << 20, end - at), at)
                os.pwrite(descriptor, block, offset + at)
                at += len(block)


def variant(image: Path, offset: int, variables: Mapping[str, str]) -> Path:
    """A copy of ``image`` with ``variables`` in its slot, from the store or created now."""
    stat = image.stat()
    # Their order counts: the loader acts on some of them when it reads them.
    key = combine([str(image), stat.st_size, stat.st_mtime_ns, list(variables.items())])

    def create(work: Path) -> Path:
        write_copy(image, offset, variables, work / image.name)
        return work

    def damage(directory: Path) -> str:
        return "" if (directory / image.name).is_file() else f"no {image.name}"

    step = f"a copy of {image.name} with kernel variables"
    directory = store.get_or_create("variants", key, create, step=step, damage=damage)
    store.keep_latest("variants", _VARIANTS)
    return directory / image.name
