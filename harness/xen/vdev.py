# SPDX-License-Identifier: BSD-2-Clause
"""Maps a vdev of a domain configuration to its number, and the number to the guest's name for the disk.

Toolstack side: xen tools/libs/light/libxl_device.c, libxl__device_disk_dev_number(). FreeBSD side:
sys/dev/xen/blkfront/blkfront.c, xbd_vdevice_to_unit(), the same from 9.3 to main.
"""

from __future__ import annotations

import re

from harness.errors import UsageError

_EXTENDED = 1 << 28
_XVD, _IDE, _SCSI = 202, (3, 22), 8

# FreeBSD's names by major: (majors in the order of units, shift from a disk's minor to its unit, units per major, name).
_FREEBSD = (
    ((3, 22, 33, 34, 56, 57, 88, 89, 90, 91), 6, 2, "ada"),
    ((8, 65, 66, 67, 68, 69, 70, 71, 128, 129, 130, 131, 132, 133, 134, 135), 4, 16, "da"),
    ((_XVD,), 4, 16, "xbd"),
)


# An integer as C reads it with strtoul(..., 0) or %i: hexadecimal, octal or decimal.
_INTEGER = r"0[xX][0-9a-fA-F]+|0[0-7]*|[1-9][0-9]{0,9}"
_NUMBER = re.compile(_INTEGER)
_DISK_PARTITION = re.compile(rf"d({_INTEGER})p({_INTEGER})")
_LETTERS = re.compile(r"(xvd|hd|sd)([a-z]+)([1-9][0-9]{0,2})?")


def number(vdev: str) -> int:
    """The number of ``vdev``: 768 for ``hda``; 51712 for ``xvda``, ``0xca00`` and ``0145000``.

    Raises UsageError for a vdev that xl refuses, and for one that libxl accepts by mistake. libxl reads ``hd`` as hdb, ``xvd`` as a
    negative number, and an empty text as 0. It also skips blanks and signs before a number.
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
        raise UsageError(f"invalid vdev {vdev!r}", hint="use xvda, xvda1, hda, sda, d0p0 or a number; see xen-vbd-interface(7)")
    kind, disk, part = match[1], _letters(match[2]), int(match[3] or 0)
    if kind == "xvd":
        return _virtual(vdev, disk, part)
    if kind == "hd":
        if disk > 3 or part > 63:
            raise UsageError(f"vdev {vdev}: xl supports hda to hdd, partitions up to 63")
        return _IDE[disk // 2] << 8 | (disk & 1) << 6 | part
    if disk > 15 or part > 15:
        raise UsageError(f"vdev {vdev}: xl supports sda to sdp, partitions up to 15")
    return _SCSI << 8 | disk << 4 | part


def _integer(text: str) -> int:
    return int(text, 16 if text[:2] in ("0x", "0X") else 8 if text.startswith("0") else 10)


def _virtual(vdev: str, disk: int, part: int) -> int:
    if disk >= 1 << 20 or part > 255:
        raise UsageError(f"vdev {vdev}: xl supports disks below 1048576, partitions up to 255")
    if disk <= 15 and part <= 15:
        return _XVD << 8 | disk << 4 | part
    return _EXTENDED | disk << 8 | part


def _letters(text: str) -> int:
    """The number of a disk's letters: 0 for a, 25 for z, 26 for aa."""
    value = 0
    for letter in text:
        value = value * 26 + ord(letter) - ord("a") + 1
    return value - 1


def freebsd_disk(vdevice: int, version: tuple[int, int] = (99, 0)) -> str:
    """The disk's name in FreeBSD ``version``: ``xbd0`` for 51712.

    Up to 9.0 a missing ``return`` broke extended numbers (fixed by 8b8bfa3567 in February 2012). In 8 ``ada`` was ``ad``.
    """
    if vdevice & _EXTENDED and version >= (9, 1):
        return f"xbd{(vdevice & (_EXTENDED - 1)) >> 8}"
    major, minor = vdevice >> 8 & 0xFF if vdevice & _EXTENDED else vdevice >> 8, vdevice & 0xFF
    if not vdevice & _EXTENDED:
        for majors, shift, units, name in _FREEBSD:
            if major in majors:
                old = "ad" if name == "ada" and version < (9, 0) else name
                return f"{old}{majors.index(major) * units + (minor >> shift)}"
    # FreeBSD names disks of unknown majors like this. The name can collide with that of a real xbd.
    return f"xbd{minor >> 4}"


def linux_disk(vdevice: int) -> str:
    """The disk's name in Linux. Every disk is an ``xvd``: sda and hda are both xvda. Raises UsageError if Linux refuses the major.

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
