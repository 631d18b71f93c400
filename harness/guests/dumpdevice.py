# SPDX-License-Identifier: BSD-2-Clause
"""A FreeBSD guest's dump device, read from dom0: a disk or a part of one."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from harness.deadline import Deadline
from harness.images import parttable
from harness.oracles import kerneldump
from harness.transport import Transport

# Seconds for one block, and for a whole disk: an emulated dom0 hashes 40 MB/s.
_BLOCK, _WHOLE = 60.0, 240.0
# Arguments: the disk and pairs of first byte and size. The status is 1 if a read fails, which a pipe would hide. Direct reads:
# blkback writes below the page cache of dom0, which may hold old data.
_DIGEST = """
disk=$1; shift
exec 4>&1
failed=$( { while [ $# -gt 0 ]; do
  [ "$2" = 0 ] || dd if="$disk" iflag=direct,skip_bytes,count_bytes bs=1M skip="$1" count="$2" status=none || { echo yes >&3; break; }
  shift 2
done | md5sum >&4; } 3>&1 )
[ -z "$failed" ]
"""
# Arguments: the disk, the first byte and the size.
_BLOCKS = 'dd if="$1" iflag=direct,skip_bytes,count_bytes bs=1M skip="$2" count="$3" status=none'
_PACKED = f"{_BLOCKS} | gzip -1c"
_SIZE = 'blockdev --getsize64 "$1" 2>/dev/null || wc -c < "$1"'
# Bytes that one trip to dom0 reads of a partition table, a multiple of each sector size. A GPT's first copy takes 24 KiB at most.
_TABLE = 1 << 16
# Partitions of one disk that are looked at: the guest chose their number.
_MOST = 16
# The partitions to which FreeBSD dumps, by the types of harness.images.parttable. "" is a disk without a table. The source is
# GEOM's g_part_dumpto in sys/geom/part/g_part_gpt.c (also the swap of Linux and of DragonFly), g_part_mbr.c (also Linux's) and
# g_part_bsd.c (also an unused one).
_DUMPS_TO = (
    "freebsd-swap", "0657fd6d-a4ab-43c4-84e5-0933c84b4f4f", "9d58fdbd-1ca5-11dc-8817-01301bb8a9f5", "freebsd", "0x82", "!0", "",
)  # fmt: skip


@dataclass(frozen=True)
class DumpDevice:
    """``size`` bytes of the disk ``target`` in dom0, from ``start`` on. ``sector`` is the size of a sector in bytes."""

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
        """The headers before and after the dump. The first is empty if the second does not give its place."""
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
        """The md5 of the disk's bytes before and after the device. ``disk_size`` is the size of the whole disk."""
        end = self.start + self.size
        return digest(self.transport, self.target, (0, self.start), (end, disk_size - end))


def digest(transport: Transport, target: str, *parts: tuple[int, int]) -> str:
    """The md5 of ``parts`` of a disk, each given by its first byte and its size, taken in dom0."""
    words = [str(number) for part in parts for number in part]
    return transport.run(["sh", "-c", _DIGEST, "sh", target, *words], Deadline(_WHOLE)).text.split()[0]


@dataclass(frozen=True)
class RemoteDisk:
    """``size`` bytes of the disk ``target`` in dom0 from ``start`` on, read in blocks, each of them once."""

    transport: Transport
    target: str
    size: int
    deadline: Deadline
    start: int = 0
    _blocks: dict[int, bytes] = field(default_factory=dict, repr=False, compare=False)

    def read(self, at: int, size: int) -> bytes:
        """As :meth:`harness.images.window.Window.read`. Raises CommandFailed, and DeadlineExpired."""
        if at < 0 or at >= self.size or size <= 0:
            return b""
        size, begin, found = min(size, self.size - at), self.start + at, b""
        for number in range(begin // _TABLE, (begin + size - 1) // _TABLE + 1):
            if number not in self._blocks:
                argv = ["sh", "-c", _BLOCKS, "sh", self.target, str(number * _TABLE), str(_TABLE)]
                self._blocks[number] = self.transport.run(argv, self.deadline.capped(_BLOCK)).stdout
            found += self._blocks[number]
        return found[begin % _TABLE :][:size]

    def part(self, start: int, size: int) -> RemoteDisk:
        """As :meth:`harness.images.window.Window.part`."""
        start = min(max(start, 0), self.size)
        return replace(self, start=self.start + start, size=max(0, min(size, self.size - start)))


def swaps(transport: Transport, target: str, name: str, deadline: Deadline) -> dict[str, DumpDevice]:
    """The partitions of the disk ``target`` to which FreeBSD may dump, by their FreeBSD names; ``name`` is that of the disk.

    Raises UsageError for a disk with a damaged table, CommandFailed, and DeadlineExpired.
    """
    size = int(transport.run(["sh", "-c", _SIZE, "sh", target], deadline.capped(_BLOCK)).text)
    disk, found = RemoteDisk(transport, target, size, deadline), {}
    for part in [part for part in parttable.partitions(disk, name) if part.type in _DUMPS_TO][:_MOST]:
        # A disk without a table does not tell the size of its sectors, but the place of a dump's header does.
        large = not part.type and kerneldump.is_dump(disk.read(part.size - 4096, kerneldump.SIZE))
        found[part.name] = DumpDevice(transport, target, part.size, 4096 if large else part.sector, part.start)
    return found
