# SPDX-License-Identifier: BSD-2-Clause
"""Edit CRIU's images of a lab's QEMU: move the machine's memory and translated code from the images to a mapped file.

CRIU's restore reads each page that the process had written: some hundred MiB of machine memory, and as much translated code. A
file that is mapped copy-on-write costs only the pages in use.

Sources of the format: criu.org/Images, and images/*.proto in CRIU's sources. An image has 8 bytes of magic, then entries. An entry
has 4 bytes of size and a protobuf message.

The import of protobuf takes time, so import this module only to save a hot checkpoint.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from google.protobuf.descriptor_pb2 import DescriptorProto, FieldDescriptorProto, FileDescriptorProto
from google.protobuf.descriptor_pool import DescriptorPool
from google.protobuf.message import DecodeError
from google.protobuf.message_factory import GetMessageClass
from google.protobuf.unknown_fields import UnknownFieldSet

from harness.sparse import copy_sparse

_PAGE = 4096
_MAGIC = 8
_SIZE = 4
# Linux's mmap(2): MAP_PRIVATE, MAP_ANONYMOUS, and PROT_READ, PROT_WRITE and PROT_EXEC together.
_PRIVATE, _ANONYMOUS = 0x02, 0x20
_READ_WRITE_EXECUTE = 7
# criu/include/image.h: VMA_AREA_REGULAR, with VMA_ANON_PRIVATE or VMA_FILE_PRIVATE.
_ANONYMOUS_AREA, _FILE_AREA = 0x201, 0x41
# PE_PRESENT, a flag of pagemap_entry.
_PRESENT = 4

_Field = FieldDescriptorProto
_REQUIRED, _OPTIONAL, _REPEATED = _Field.LABEL_REQUIRED, _Field.LABEL_OPTIONAL, _Field.LABEL_REPEATED


def _integers(label: FieldDescriptorProto.Label.ValueType = _REQUIRED, **numbers: int) -> list[FieldDescriptorProto]:
    """Fields with these numbers. CRIU declares some as uint32, which has the same encoding as uint64."""
    return [_Field(name=name, number=number, label=label, type=_Field.TYPE_UINT64) for name, number in numbers.items()]


# Only the fields in use. protobuf keeps all others unchanged and writes them after these. A path need not be UTF-8. ``shmid`` is
# the id of a mapped file. Old versions of CRIU have the number of pages in ``compat_nr_pages`` only.
_MESSAGES = {
    "file_entry": [*_integers(id=2), _Field(name="reg", number=3, label=_OPTIONAL, type_name="reg_file_entry")],
    "reg_file_entry": [_Field(name="name", number=6, label=_REQUIRED, type=_Field.TYPE_BYTES), *_integers(_OPTIONAL, size=8)],
    "mm_entry": [_Field(name="vmas", number=14, label=_REPEATED, type_name="vma_entry")],
    "vma_entry": [*_integers(start=1, end=2, pgoff=3, shmid=4, prot=5, flags=6, status=7), *_integers(_OPTIONAL, madv=9)],
    "pagemap_head": _integers(pages_id=1),
    "pagemap_entry": [*_integers(vaddr=1), *_integers(_OPTIONAL, compat_nr_pages=2, flags=4, nr_pages=5)],
}
_FILE = FileDescriptorProto(
    name="criu.proto",
    syntax="proto2",
    message_type=[DescriptorProto(name=name, field=fields) for name, fields in _MESSAGES.items()],
)
# Not the default pool: other modules may define messages with these names there.
_POOL = DescriptorPool()
_POOL.AddSerializedFile(_FILE.SerializeToString())
_CLASSES: dict[str, Any] = {name: GetMessageClass(_POOL.FindMessageTypeByName(name)) for name in _MESSAGES}


class Unknown(ValueError):
    """The images have an unsupported format."""


@dataclass(frozen=True)
class _Region:
    """The addresses from ``begin`` to ``end``, whose content is at ``offset`` of the file."""

    begin: int
    end: int
    offset: int


def take_memory_out(images: Path, base: Path, size: int, memory: Path, place: Path) -> None:
    """Move pages from CRIU's ``images`` to ``memory``, a new file: private mappings of ``base``, and anonymous executable memory.

    The new file is a copy of ``base``, followed by the executable memory. ``base`` begins with ``size`` bytes of machine memory.
    The changed images map the file ``place``. The caller must move ``memory`` there before a restore.

    Raises OSError. Raises Unknown for an unsupported format; then the images are unchanged.
    """
    files = images / "files.img"
    ids = _file_ids(files, base)
    spaces = _single(images, "mm-*.img")
    # mmap(2) refuses executable mappings of a file system that is mounted noexec.
    executable = not os.statvfs(images).f_flag & os.ST_NOEXEC
    space, regions = _map_regions(spaces, ids, base.stat().st_size, code=executable)
    if [(region.offset, region.end - region.begin) for region in regions if region.offset < size] != [(0, size)]:
        raise Unknown(f"mappings of the memory: {regions}, expected one of {size} bytes")
    total = max(region.offset + region.end - region.begin for region in regions)
    renamed = list(_rename_file(files, base, place, total))
    pagemap = _single(images, "pagemap-*.img")
    head, *runs = _entries(pagemap) or [b""]
    pages = images / f"pages-{_parse('pagemap_head', head).pages_id}.img"
    kept, remaining = [head], pages.with_suffix(".new")
    copy_sparse(base, memory)
    memory.chmod(base.stat().st_mode & 0o7777)
    with pages.open("rb", buffering=0) as source, remaining.open("wb") as rest, memory.open("r+b", buffering=0) as target:
        target.truncate(total)
        for run in runs:
            for address, count, region in _split_run(*_page_run(run), regions):
                data = source.read(count * _PAGE)
                if len(data) != count * _PAGE:
                    raise Unknown(f"{pages.name} is truncated")
                if region:
                    os.pwrite(target.fileno(), data, region.offset + address - region.begin)
                else:
                    kept.append(_with_page_run(run, address, count))
                    rest.write(data)
    remaining.replace(pages)
    _write(pagemap, kept)
    _write(spaces, [space])
    _write(files, renamed)


def _split_run(address: int, count: int, regions: list[_Region]) -> Iterator[tuple[int, int, _Region | None]]:
    """Split a run of pages at the limits of regions. Yields address, number of pages and region of each part."""
    end = address + count * _PAGE
    cuts = sorted({address, end} | {cut for r in regions for cut in (r.begin, r.end) if address < cut < end})
    for begin, stop in itertools.pairwise(cuts):
        yield begin, (stop - begin) // _PAGE, next((r for r in regions if r.begin <= begin < r.end), None)


def _file_ids(path: Path, name: Path) -> set[int]:
    """The ids of the regular files with that name. CRIU has one per open file description."""
    files = [_parse("file_entry", entry) for entry in _entries(path)]
    return {file.id for file in files if file.reg.name == os.fsencode(name)}


def _rename_file(path: Path, old: Path, new: Path, size: int) -> Iterator[bytes]:
    """All entries, with the file ``new`` of ``size`` bytes in place of ``old``."""
    for entry in _entries(path):
        file = _parse("file_entry", entry)
        if file.reg.name == os.fsencode(old):
            if not file.reg.HasField("size"):
                raise Unknown(f"{path.name} has no size of {old}")
            file.reg.name, file.reg.size = os.fsencode(new), size
            entry = file.SerializeToString()
        yield entry


def _map_regions(path: Path, ids: set[int], end: int, *, code: bool) -> tuple[bytes, list[_Region]]:
    """The new entry of the process's memory, and its regions in the files ``ids``. ``end`` is the size of that file in bytes.

    With ``code``, the new entry maps anonymous executable memory to the file from ``end`` on.
    """
    entry = next(iter(_entries(path)), b"")
    space, regions = _parse("mm_entry", entry), []
    changed = False
    for vma in space.vmas:
        size = vma.end - vma.start
        if vma.shmid in ids and vma.flags & _PRIVATE:
            regions.append(_Region(vma.start, vma.end, vma.pgoff))
        elif code and ids and (vma.prot, vma.status) == (_READ_WRITE_EXECUTE, _ANONYMOUS_AREA):
            regions.append(_Region(vma.start, vma.end, end))
            vma.pgoff, vma.shmid, vma.flags, vma.status = end, min(ids), vma.flags & ~_ANONYMOUS, _FILE_AREA
            vma.ClearField("madv")
            end += size
            changed = True
    return space.SerializeToString() if changed else entry, regions


def _page_run(entry: bytes) -> tuple[int, int]:
    """Address and number of pages of an entry. Raises Unknown for pages that are not in the pages file."""
    run = _parse("pagemap_entry", entry)
    count = _count_field(run)
    if len(UnknownFieldSet(run)) or (run.HasField("flags") and not run.flags & _PRESENT) or not run.HasField(count):
        raise Unknown(f"pages that are not in the pages file: {entry.hex()}")
    return run.vaddr, getattr(run, count)


def _with_page_run(entry: bytes, address: int, count: int) -> bytes:
    """A copy of the entry for other pages."""
    run = _parse("pagemap_entry", entry)
    run.vaddr = address
    setattr(run, _count_field(run), count)
    data: bytes = run.SerializeToString()
    return data


def _count_field(run: Any) -> str:
    return "nr_pages" if run.HasField("nr_pages") else "compat_nr_pages"


def _parse(name: str, data: bytes) -> Any:
    """The message ``name``. Raises Unknown if it is damaged or lacks a required field."""
    message = _CLASSES[name]()
    try:
        message.ParseFromString(data)
    except DecodeError as exc:
        raise Unknown(f"damaged {name}: {exc}") from exc
    if missing := message.FindInitializationErrors():
        raise Unknown(f"{name} without {', '.join(missing)}")
    return message


def _single(images: Path, pattern: str) -> Path:
    found = list(images.glob(pattern))
    if len(found) != 1:
        raise Unknown(f"{pattern}: {[path.name for path in found]}, expected one file")
    return found[0]


def _entries(path: Path) -> list[bytes]:
    data = path.read_bytes()
    entries, at = [], _MAGIC
    while at < len(data):
        begin = at + _SIZE
        at = begin + int.from_bytes(data[at:begin], "little")
        if at > len(data):
            raise Unknown(f"{path.name} is truncated")
        entries.append(data[begin:at])
    return entries


def _write(path: Path, entries: list[bytes]) -> None:
    magic = path.read_bytes()[:_MAGIC]
    path.write_bytes(magic + b"".join(len(entry).to_bytes(_SIZE, "little") + entry for entry in entries))
