# SPDX-License-Identifier: BSD-2-Clause
"""A FreeBSD guest's dump device, read from dom0: a disk or a part of one."""

from __future__ import annotations

from dataclasses import dataclass

from harness.deadline import Deadline
from harness.oracles import kerneldump
from harness.transport import Transport

# Seconds for one block, and for a whole disk: an emulated dom0 hashes 40 MB/s.
_BLOCK, _WHOLE = 60.0, 240.0
# Arguments: the disk and pairs of first byte and size. Direct reads: blkback writes below the page cache of dom0, which may hold old data.
_DIGEST = """
disk=$1; shift
while [ $# -gt 0 ]; do
  [ "$2" = 0 ] || dd if="$disk" iflag=direct,skip_bytes,count_bytes bs=1M skip="$1" count="$2" status=none || exit
  shift 2
done | md5sum
"""
# Arguments: the disk, the first byte and the size.
_PACKED = 'dd if="$1" iflag=direct,skip_bytes,count_bytes bs=1M skip="$2" count="$3" status=none | gzip -1c'


@dataclass(frozen=True)
class DumpDevice:
    """The bytes of the disk ``target`` in dom0 from ``start`` on, ``size`` of them. ``sector`` is the size of a sector in bytes."""

    transport: Transport
    target: str
    size: int
    sector: int = 512
    start: int = 0

    def read(self, at: int) -> bytes:
        """The sector at byte ``at`` of the device. Fewer bytes if the disk ends before. Raises CommandFailed."""
        place = (self.start + at) // self.sector
        argv = ["dd", f"if={self.target}", f"bs={self.sector}", f"skip={place}", "count=1", "iflag=direct", "status=none"]
        return self.transport.run(argv, Deadline(_BLOCK)).stdout

    def headers(self) -> tuple[bytes, bytes]:
        """The header before the dump and the one after it. The first is empty if the second does not say where it is."""
        tail = self.read(self.size - self.sector)
        place = kerneldump.first_header_offset(tail, sector=self.sector, size=self.size)
        return self.read(place) if place >= 0 else b"", tail

    def dump_digest(self, tail: bytes) -> str:
        """The md5 of the dump that ``tail`` ends, taken in dom0."""
        place = kerneldump.first_header_offset(tail, sector=self.sector, size=self.size)
        return digest(self.transport, self.target, (self.start + place + self.sector, kerneldump.parse(tail).length))

    def packed_dump(self, tail: bytes, seconds: float) -> bytes:
        """The dump that ``tail`` ends, compressed by gzip. Raises CommandFailed, and DeadlineExpired after ``seconds``."""
        place = kerneldump.first_header_offset(tail, sector=self.sector, size=self.size)
        words = [str(self.start + place + self.sector), str(kerneldump.parse(tail).length)]
        return self.transport.run(["sh", "-c", _PACKED, "sh", self.target, *words], Deadline(seconds)).stdout

    def digest_of_rest(self, disk_size: int) -> str:
        """The md5 of the disk's bytes before and behind the device. ``disk_size`` is the size of the whole disk."""
        end = self.start + self.size
        return digest(self.transport, self.target, (0, self.start), (end, disk_size - end))


def digest(transport: Transport, target: str, *parts: tuple[int, int]) -> str:
    """The md5 of ``parts`` of a disk, each given by its first byte and its size, taken in dom0."""
    words = [str(number) for part in parts for number in part]
    return transport.run(["sh", "-c", _DIGEST, "sh", target, *words], Deadline(_WHOLE)).text.split()[0]
