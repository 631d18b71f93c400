# SPDX-License-Identifier: BSD-2-Clause
"""Reads untrusted tar archives with tarfile. Limits of a header, of all data and of time prevent endless reads and full memory."""

from __future__ import annotations

import bz2
import gzip
import lzma
import tarfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import IO, cast

from harness.deadline import Deadline

# Bytes that describe one member: its header, long names and pax records. Members of release sets have at most 3 KiB.
_HEADER = 16 << 10
# pax records of one member, with the global ones.
_RECORDS = 64
# Seconds for all members. A release's base.txz, unpacked to a disk, takes about a minute.
_SECONDS = 1800.0
_OPENERS = ((b"\xfd7zXZ\x00", lzma.open), (b"\x1f\x8b", gzip.open), (b"BZh", bz2.open))


class BadArchive(tarfile.TarError):
    """The archive is damaged, or larger than it may be."""


def members(archive: Path, most: int) -> Iterator[tuple[tarfile.TarInfo, IO[bytes] | None]]:
    """The members of an archive in their order, and the contents of each regular file, which are valid until the next member.

    ``archive`` is packed by xz, gzip, bzip2 or not at all; ``most`` limits its unpacked size (bytes). Keeps no list of the members.
    Raises BadArchive, DeadlineExpired after 30 minutes, and OSError. Reading contents raises tarfile.TarError and OSError.
    """
    deadline = Deadline(_SECONDS)
    with _opened(archive) as packed:
        limited = Limited(packed, most)
        try:
            with tarfile.open(fileobj=cast("IO[bytes]", limited), mode="r:") as tar:
                before = -1
                while member := _following(tar, limited):
                    if deadline.expired:
                        raise deadline.expire(f"the members of {archive.name}")
                    check(member, before, most)
                    before = member.offset
                    yield member, tar.extractfile(member) if member.isreg() else None
        # tarfile passes these on for some invalid headers.
        except (ValueError, OverflowError, IndexError, TypeError, RecursionError, MemoryError) as exc:
            raise BadArchive(f"invalid header ({type(exc).__name__})") from exc


def _following(tar: tarfile.TarFile, limited: Limited) -> tarfile.TarInfo | None:
    limited.expect_header()
    member = tar.next()
    limited.expect_contents()
    tar.members = []  # type: ignore[attr-defined]  # typeshed lacks it
    return member


def check(member: tarfile.TarInfo, before: int, most: int) -> None:
    """Raise BadArchive for a member whose header cannot be true. ``before`` is the offset of the header before it, -1 for none."""
    name = repr(member.name[:80])
    if not 0 <= member.size <= most:
        raise BadArchive(f"{name} claims to have {member.size} bytes; the limit is {most >> 20} MiB")
    if member.offset <= before:
        raise BadArchive(f"the header of {name} does not follow the member before it")
    if member.issparse():
        raise BadArchive(f"{name} is sparse; write the archive without sparse files")
    if len(member.pax_headers) > _RECORDS:
        raise BadArchive(f"{name} has {len(member.pax_headers)} pax records; the limit is {_RECORDS}")


def _opened(archive: Path) -> IO[bytes]:
    with archive.open("rb") as file:
        magic = file.read(6)
    opener = next((opener for start, opener in _OPENERS if magic.startswith(start)), None)
    return cast("IO[bytes]", opener(archive)) if opener else archive.open("rb")


class Limited:
    """A file for tarfile that goes forward only, up to ``most`` bytes, and reads small headers only. Raises BadArchive."""

    def __init__(self, file: IO[bytes], most: int) -> None:
        self._file = file
        self._most = most
        self._header: int | None = _HEADER

    def expect_header(self) -> None:
        """From here on, all reads together get at most 16 KiB."""
        self._header = _HEADER

    def expect_contents(self) -> None:
        self._header = None

    def read(self, size: int) -> bytes:
        if size < 0:
            raise BadArchive("a header has a negative size")
        if self._header is not None:
            self._header -= size
            if self._header < 0:
                raise BadArchive(f"a header has more than {_HEADER >> 10} KiB")
        self._check(self.tell() + size)
        try:
            return self._file.read(size)
        except (lzma.LZMAError, zlib.error, EOFError, MemoryError) as exc:
            raise BadArchive(f"cannot be unpacked: {exc}") from exc
        except OSError as exc:
            if exc.errno is None:  # of bz2 and gzip
                raise BadArchive(f"cannot be unpacked: {exc}") from exc
            raise

    def seek(self, position: int) -> int:
        if position < self.tell():
            raise BadArchive("a member begins before the end of the member before it")
        self._check(position)
        return self._file.seek(position)

    def tell(self) -> int:
        return self._file.tell()

    def _check(self, position: int) -> None:
        if position > self._most:
            raise BadArchive(f"its unpacked size is above the limit of {self._most >> 20} MiB")
