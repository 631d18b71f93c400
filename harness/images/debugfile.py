# SPDX-License-Identifier: BSD-2-Clause
"""Finds the debugging information of a kernel: the file with the same build-id.

The store has ``kernel.debug`` next to each kernel that it built. A caller can name other files or directories, for example an unpacked
kernel-dbg.txz of a release.
"""

from __future__ import annotations

import functools
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from pathlib import Path

from harness.errors import UsageError
from harness.images import entries
from harness.images.kernelfile import build_id

NAME = "kernel.debug"
# Where FreeBSD's installer puts kernel-dbg.txz (share/mk/bsd.own.mk, DEBUGDIR).
_INSTALLED = Path("usr/lib/debug/boot/kernel") / NAME


def find(kernel: Path, given: Sequence[Path] = ()) -> Path | None:
    """The debugging information of ``kernel``, or None. ``given`` are the user's files or directories.

    Raises UsageError if one of them belongs to another build or does not exist.
    """
    wanted = build_id(kernel)
    for path in given:
        if path.is_file() and build_id(path) != wanted:
            raise UsageError(
                f"{path}: build-id {build_id(path) or 'none'}, but {kernel} has {wanted or 'none'}: it belongs to another build",
                hint="give the kernel.debug of the same build",
            )
        if not path.exists():
            raise UsageError(
                f"{path}: no such file or directory", hint="name a kernel.debug, or the directory of an unpacked kernel-dbg.txz"
            )
    if not wanted:
        return None
    return next((path for path in _candidates(kernel, given) if path.is_file() and _id(path) == wanted), None)


def _id(path: Path) -> str:
    there = path.stat()
    return _cached_id(path, there.st_mtime_ns, there.st_size)


@functools.lru_cache(maxsize=256)
def _cached_id(path: Path, changed: int, size: int) -> str:
    """The build-id of a file in this state. A file has megabytes, and each vCPU of a guest asks."""
    return build_id(path)


def compress(debug: Path, target: Path, bindir: Path | None) -> None:
    """Copy ``debug`` to ``target`` with compressed sections, if ``bindir`` has a suitable objcopy. Raises OSError."""
    objcopy = (bindir or Path("/usr/local/llvm/bin")) / "llvm-objcopy"
    if objcopy.exists():
        argv = [str(objcopy), "--compress-debug-sections=zlib", str(debug), str(target)]
        if subprocess.run(argv, stdin=subprocess.DEVNULL, capture_output=True, check=False).returncode == 0:
            return
    shutil.copyfile(debug, target)


def _candidates(kernel: Path, given: Sequence[Path]) -> Iterator[Path]:
    for path in given:
        yield from (path, path / NAME, path / _INSTALLED)
    yield kernel.with_name(NAME)
    for _, entry in entries.listing("kernels"):
        yield entry.directory / NAME
