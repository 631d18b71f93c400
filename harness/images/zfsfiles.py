# SPDX-License-Identifier: BSD-2-Clause
"""Reads files from a ZFS pool with GRUB's grub-fstest, which needs no mount.

grub-fstest opens partitions of a GPT. Of other tables it lists partitions that it cannot open (2.06), so those are copied out.
"""

from __future__ import annotations

import contextlib
import io
import re
import resource
import shutil
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from harness import debian, paths
from harness.errors import InfrastructureError, UsageError
from harness.images.parttable import Partition
from harness.images.ufs import BadFileSystem
from harness.images.window import Window

_PROGRAM = "grub-fstest"
# Limits: seconds for one file; bytes of memory, and of a listing.
_PATIENCE, _MEMORY, _LISTING = 120, 4 << 30, 1 << 20
_BLOCK = 1 << 20
# Names that can be passed back to grub-fstest: without blanks, which end a name, and without `@` and `/`.
_NAME = re.compile(r"[A-Za-z0-9_.:-]{1,255}")


@dataclass(frozen=True)
class ZfsFiles:
    """The files of one dataset. ``device`` is GRUB's name for the vdev in ``image``, ``dataset`` its name below the pool."""

    image: Path
    device: str
    dataset: str = ""

    def read(self, path: str, largest: int) -> bytes:
        """The content of a file. Raises BadFileSystem if it is missing or larger than ``largest`` bytes."""
        return b"".join(self.blocks(path, largest))

    def blocks(self, path: str, largest: int) -> Iterator[bytes]:
        """The content of a file in pieces. Raises BadFileSystem as :meth:`read` does."""
        yield from _run(["cat", self._at(path)], self.image, largest)

    def names(self, path: str) -> tuple[str, ...]:
        """The sorted names in a directory, except those with unusual characters. Raises BadFileSystem if it is not a directory."""
        return _listed(b"".join(_run(["ls", self._at(path.rstrip("/") + "/")], self.image, _LISTING)))

    def exists(self, path: str) -> bool:
        """Whether there is a file or directory at ``path``."""
        parent, _, name = path.rstrip("/").rpartition("/")
        try:
            return name in self.names(parent or "/")
        except BadFileSystem:
            return False

    def datasets(self) -> tuple[str, ...]:
        """Names of the datasets directly below this one. Raises BadFileSystem."""
        at = f"({self.device})/{self.dataset}".rstrip("/") + "/"
        return _listed(b"".join(_run(["ls", at], self.image, _LISTING)))

    def _at(self, path: str) -> str:
        return f"({self.device})/{self.dataset}/@/{path.lstrip('/')}".replace(")//", ")/")


@contextmanager
def opened(disk: Path, volume: Window, part: Partition, whole: bool) -> Iterator[ZfsFiles]:
    """Yield the top dataset of the pool on the partition ``part`` of ``disk`` (``whole``: the disk has no table).

    Raises UsageError if grub-fstest is missing or cannot read the pool.
    """
    if not shutil.which(_PROGRAM, path=debian.path()):
        raise UsageError(
            f"{disk}: reading files from ZFS needs {_PROGRAM}, which this machine lacks",
            hint="apt-get install grub-common (or fxh setup)",
        )
    # xbd0p4
    number = re.fullmatch(r"xbd0p(\d+)", part.name)
    if whole or (number and part.primary):
        yield _readable(ZfsFiles(disk, "loop0" if whole or not number else f"loop0,gpt{number[1]}"), disk, part)
        return
    with tempfile.TemporaryDirectory(prefix="fxh-vdev-", dir=paths.store()) as scratch:
        copy = Path(scratch) / "vdev"
        _copy(disk, volume, copy)
        yield _readable(ZfsFiles(copy, "loop0"), disk, part)


def _readable(found: ZfsFiles, disk: Path, part: Partition) -> ZfsFiles:
    """``found``, if GRUB can read its datasets. Raises UsageError."""
    try:
        found.datasets()
    except BadFileSystem as exc:
        raise UsageError(f"{disk}: GRUB cannot read the ZFS pool on {part.name}: {exc}", hint=_HINT) from None
    return found


_HINT = "give the kernel and the root dataset: --kernel FILE --root zfs:POOL/DATASET"


def _copy(disk: Path, volume: Window, target: Path) -> None:
    """Write a sparse copy of ``volume`` to ``target``."""
    with target.open("wb") as out:
        out.truncate(volume.size)
        at = 0
        while block := volume.read(at, _BLOCK):
            if block.count(0) != len(block):
                if shutil.disk_usage(target.parent).free < 256 << 20:
                    raise InfrastructureError(
                        f"{disk}: no space in the store for a copy of its ZFS partition", hint="run `fxh store gc`"
                    )
                out.seek(at)
                out.write(block)
            at += len(block)


def _listed(text: bytes) -> tuple[str, ...]:
    # @/ ROOT/ home/
    words = (word.rstrip("/") for word in text.decode("utf-8", "replace").split())
    return tuple(sorted({word for word in words if _NAME.fullmatch(word)}))


def _run(words: list[str], image: Path, largest: int) -> Iterator[bytes]:
    """The output of a grub-fstest command. Raises BadFileSystem with its error, or for more than ``largest`` bytes."""
    with tempfile.TemporaryFile() as said:
        process = subprocess.Popen(
            [_PROGRAM, str(image), *words], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=said,
            env={"LC_ALL": "C", "PATH": debian.path()},
        )  # fmt: skip
        if sys.platform == "linux":
            with contextlib.suppress(ProcessLookupError):  # it has ended already
                resource.prlimit(process.pid, resource.RLIMIT_AS, (_MEMORY, _MEMORY))
        out = process.stdout or io.BytesIO()
        timer = threading.Timer(_PATIENCE, process.kill)
        timer.start()
        given = 0
        try:
            while block := out.read(_BLOCK):
                given += len(block)
                if given > largest:
                    raise BadFileSystem(f"{words[-1]} has more than {largest} bytes")
                yield block
            status = process.wait()
        finally:
            timer.cancel()
            process.kill()
            process.wait()
            out.close()
        if status:
            said.seek(0)
            # grub-fstest: error: cannot open `/none': file `/none' not found.
            text = said.read(2000).decode(errors="replace").strip().rpartition("error: ")[2]
            raise BadFileSystem(text or f"{_PROGRAM} {words[0]} ended with {status} (limit {_PATIENCE} s)")
