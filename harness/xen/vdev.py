# SPDX-License-Identifier: BSD-2-Clause
"""From a vdev in a domain configuration to a number, and from the number to what a guest calls the disk.

Toolstack side: xen tools/libs/light/libxl_device.c, libxl__device_disk_dev_number(). FreeBSD side:
sys/dev/xen/blkfront/blkfront.c, xbd_vdevice_to_unit(), the same from 9.3 to main.
"""

from __future__ import annotations

import re

from harness.errors import UsageError

_EXTENDED = 1 << 28
_XVD, _IDE, _SCSI = 202, (3, 22), 8

# Majors by which FreeBSD names a disk: (majors in order of units, minors of a disk as a shift, units a major, name).
_FREEBSD = (
    ((3, 22, 33, 34, 56, 57, 88, 89, 90, 91), 6, 2, "ada"),
    ((8, 65, 66, 67, 68, 69, 70, 71, 128, 129, 130, 131, 132, 133, 134, 135), 4, 16, "da"),
    ((_XVD,), 4, 16, "xbd"),
)


# As C reads an integer whose base is open (strtoul() with base 0, and %i): hexadecimal, octal, decimal; as long as it can be right.
_INTEGER = r"0[xX][0-9a-fA-F]+|0[0-7]*|[1-9][0-9]{0,9}"
_NUMBER = re.compile(_INTEGER)
_DISK_PARTITION = re.compile(rf"d({_INTEGER})p({_INTEGER})")
_LETTERS = re.compile(r"(xvd|hd|sd)([a-z]+)([1-9][0-9]{0,2})?")


def number(vdev: str) -> int:
    """The number of ``vdev``: ``xvda`` is 51712, ``hda`` 768, ``0xca00`` and ``0145000`` are 51712.

    Raises UsageError for what xl refuses, and for what libxl takes by mistake: ``hd`` is hdb to it, ``xvd`` a negative number, an
    empty text 0; and it skips blanks and signs before a number.
    """
    if _NUMBER.fullmatch(vdev):
        value = _integer(vdev)
        if value > 0x7FFFFFFF:
            raise UsageError(f"vdev {vdev}: larger than INT_MAX")
        return value
    if match := _DISK_PARTITION.fullmatch(vdev):
        return _virtual(vdev, _integer(match[1]), _integer(match[2]))
    match = _LETTERS.fullmatch(vdev)
    if not match:
        raise UsageError(f"vdev {vdev!r}", hint="xvda, xvda1, hda, sda, d0p0 or a number; see xen-vbd-interface(7)")
    kind, disk, part = match[1], _letters(match[2]), int(match[3] or 0)
    if kind == "xvd":
        return _virtual(vdev, disk, part)
    if kind == "hd":
        if disk > 3 or part > 63:
            raise UsageError(f"vdev {vdev}: xl knows hda to hdd, partitions up to 63")
        return _IDE[disk // 2] << 8 | (disk & 1) << 6 | part
    if disk > 15 or part > 15:
        raise UsageError(f"vdev {vdev}: xl knows sda to sdp, partitions up to 15")
    return _SCSI << 8 | disk << 4 | part


def _integer(text: str) -> int:
    return int(text, 16 if text[:2] in ("0x", "0X") else 8 if text.startswith("0") else 10)


def _virtual(vdev: str, disk: int, part: int) -> int:
    if disk >= 1 << 20 or part > 255:
        raise UsageError(f"vdev {vdev}: xl knows disks below 1048576, partitions up to 255")
    if disk <= 15 and part <= 15:
        return _XVD << 8 | disk << 4 | part
    return _EXTENDED | disk << 8 | part


def _letters(text: str) -> int:
    """a is 0, z 25, aa 26."""
    value = 0
    for letter in text:
        value = value * 26 + ord(letter) - ord("a") + 1
    return value - 1


def freebsd_disk(vdevice: int, version: tuple[int, int] = (99, 0)) -> str:
    """The disk's name in FreeBSD ``version``: 51712 is ``xbd0``.

    Up to 9.0 the extended numbers lost their way (a missing ``return``, mended by 8b8bfa3567 in February 2012); in 8 ``ada``
    was ``ad``.
    """
    if vdevice & _EXTENDED and version >= (9, 1):
        return f"xbd{(vdevice & (_EXTENDED - 1)) >> 8}"
    major, minor = vdevice >> 8 & 0xFF if vdevice & _EXTENDED else vdevice >> 8, vdevice & 0xFF
    if not vdevice & _EXTENDED:
        for majors, shift, units, name in _FREEBSD:
            if major in majors:
                old = "ad" if name == "ada" and version < (9, 0) else name
                return f"{old}{majors.index(major) * units + (minor >> shift)}"
    # What is not known falls through to this, and can collide with a real xbd.
    return f"xbd{minor >> 4}"


def linux_disk(vdevice: int) -> str:
    """The disk's name in Linux: all are ``xvd``, sda and hda alike xvda. Raises UsageError for a major that it refuses.

    Source: drivers/block/xen-blkfront.c, xlvbd_alloc_gendisk() and xen_translate_vdev().
    """
    if vdevice & _EXTENDED:
        minor = vdevice & (_EXTENDED - 1)
        return f"xvd{_name(minor >> 8)}{_part(minor & 0xFF)}"
    major, minor = vdevice >> 8, vdevice & 0xFF
    for majors, shift, units, _ in _FREEBSD:
        if major in majors:
            return f"xvd{_name(majors.index(major) * units + (minor >> shift))}{_part(minor & ((1 << shift) - 1))}"
    raise UsageError(f"vdev number {vdevice}: Linux refuses it")


def _name(disk: int) -> str:
    text = ""
    disk += 1
    while disk:
        disk, letter = divmod(disk - 1, 26)
        text = chr(ord("a") + letter) + text
    return text


def _part(part: int) -> str:
    return str(part) if part else ""
