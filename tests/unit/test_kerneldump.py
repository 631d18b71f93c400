# SPDX-License-Identifier: BSD-2-Clause
"""FreeBSD's kernel dump header, on headers of our own."""

from __future__ import annotations

import struct

import pytest

from harness.oracles.kerneldump import MAGIC, SIZE, dump_errors, first_header_offset, parse

SECTOR, DEVICE, LENGTH = 512, 100 << 20, 60 << 20


def header(**changes: object) -> bytes:
    values: dict[str, object] = {
        "magic": MAGIC, "arch": b"amd64", "version": 4, "archversion": 2, "length": LENGTH, "block": SECTOR,
        "kernel": b"FreeBSD 15.1-RELEASE-p1 XENA\n", "panic": b"kdb_sysctl_panic", "extent": LENGTH,
    }  # fmt: skip
    values |= changes
    fields = (
        values["magic"], values["arch"], values["version"], values["archversion"], values["length"], 1_700_000_000, 0,
        values["block"], b"fbsd", values["kernel"], values["panic"], 0, values["extent"], b"",
    )  # fmt: skip
    body = struct.pack(">20s12sIIQQII64s192s175sBQ4s", *fields)
    parity = 0
    for (word,) in struct.iter_unpack(">I", body):
        parity ^= word
    return body + struct.pack(">I", parity)


def judged(head: bytes, tail: bytes, *, sector: int = SECTOR) -> list[str]:
    return dump_errors(head, tail, sector=sector, size=DEVICE, panic="kdb_sysctl_panic", release="15.1-RELEASE-p1")


def test_a_sound_dump_has_no_complaint() -> None:
    assert len(header()) == SIZE
    assert judged(header(), header()) == []
    assert first_header_offset(header(), sector=SECTOR, size=DEVICE) == DEVICE - LENGTH - 2 * SECTOR


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"magic": b"Cleared Kernel Dump"}, "there is no dump"),
        ({"arch": b"i386"}, "i386"),
        ({"version": 3}, "version 3"),
        ({"block": 4096}, "the device's sector 512"),
        ({"length": DEVICE}, "on a device of"),
        ({"length": 0}, "a dump of 0 bytes"),
        ({"panic": b"other"}, "'other'"),
        ({"kernel": b"FreeBSD 14.2-RELEASE"}, "14.2"),
    ],
)
def test_each_wrong_field_is_named(changes: dict[str, object], words: str) -> None:
    (complaint,) = judged(header(**changes), header(**changes))
    assert words in complaint


def test_a_flipped_bit_breaks_the_parity() -> None:
    torn = bytearray(header())
    torn[60] ^= 1
    assert "parity" in " ".join(judged(bytes(torn), bytes(torn)))


def test_the_two_headers_must_agree() -> None:
    assert "differs" in " ".join(judged(header(panic=b"x"), header()))


def test_a_dump_that_begins_before_the_device_has_no_place() -> None:
    assert first_header_offset(header(extent=DEVICE), sector=SECTOR, size=DEVICE) == -1
    assert first_header_offset(bytes(SIZE), sector=SECTOR, size=DEVICE) == -1


def test_an_extent_that_fills_no_sector_is_rounded_up() -> None:
    assert first_header_offset(header(extent=5000), sector=4096, size=DEVICE) == DEVICE - 2 * 4096 - 8192


def test_a_short_block_is_an_error() -> None:
    with pytest.raises(ValueError, match="of 3 bytes"):
        parse(b"abc")
