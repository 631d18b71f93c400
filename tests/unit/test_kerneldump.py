# SPDX-License-Identifier: BSD-2-Clause
"""FreeBSD's kernel dump header, on headers of our own."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from harness.oracles.kerneldump import (
    CLEARED,
    MAGIC,
    SIZE,
    cleared,
    dump_errors,
    first_header_offset,
    header_errors,
    info_errors,
    is_dump,
    parse,
)

SECTOR, DEVICE, LENGTH = 512, 100 << 20, 60 << 20


def header(**changes: object) -> bytes:
    values: dict[str, object] = {
        "magic": MAGIC, "arch": b"amd64", "version": 4, "archversion": 2, "length": LENGTH, "block": SECTOR,
        "kernel": b"FreeBSD 15.1-RELEASE-p1 XENA\n", "panic": b"kdb_sysctl_panic", "compression": 0, "extent": LENGTH, "key": 0, "time": 1_700_000_000,
    }  # fmt: skip
    values |= changes
    fields = (
        values["magic"], values["arch"], values["version"], values["archversion"], values["length"], values["time"],
        values["key"], values["block"], b"fbsd", values["kernel"], values["panic"], values["compression"], values["extent"], b"",
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
        ({"magic": CLEARED}, "there is no dump"),
        ({"magic": b"FreeBSD Text Dump"}, "b'FreeBSD Text Dump'"),
        ({"magic": b"\x1b[2J\xff"}, r"b'\x1b[2J\xff'"),
        ({"arch": b"i386"}, "i386"),
        ({"arch": b"\x1b]0;x\x07"}, r"'\x1b]0;x\x07'"),
        ({"version": 3}, "version 3"),
        ({"version": 0xFFFFFFFF}, "version 4294967295.2, instead of 'amd64', version 4.2"),
        ({"archversion": 0}, "version 4.0"),
        ({"block": 4096}, "the device's sector 512"),
        ({"length": DEVICE}, "on a device of"),
        ({"length": 0}, "a dump of 0 bytes"),
        ({"length": 2**64 - 1}, "a dump of 18446744073709551615 bytes"),
        ({"extent": LENGTH - 1}, "only 62914559 bytes"),
        ({"extent": 0}, "reserves 0 bytes"),
        ({"extent": 2**64 - 1}, "18446744073709551615 bytes"),
        ({"block": 0}, "header's block has 0 bytes"),
        ({"compression": 3}, "compression is 3"),
        ({"key": 4096}, "key of 4096 bytes"),
        ({"panic": b"other"}, "'other'"),
        ({"panic": b"\x1b[31mred\n"}, r"'\x1b[31mred\n'"),
        ({"panic": b"\xff" * 175}, "the console's 'kdb_sysctl_panic'"),
        ({"kernel": b""}, "kernel is ''"),
        ({"kernel": b"\n"}, "kernel is ''"),
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


@pytest.mark.parametrize("tail", [b"", b"abc", header()[:511]])
def test_a_device_that_ends_early_is_named(tail: bytes) -> None:
    (complaint,) = judged(b"", tail)
    assert f"has {len(tail)} bytes instead of 512" in complaint
    assert not is_dump(tail)
    assert first_header_offset(tail, sector=SECTOR, size=DEVICE) == -1


@pytest.mark.parametrize("head", [b"", header()[:100], bytes(SIZE), header(length=4096)])
def test_a_missing_first_header_is_named(head: bytes) -> None:
    assert judged(head, header()) == ["the header before the dump differs from the one after it"]


def test_a_dump_that_would_need_the_first_header_before_the_device() -> None:
    at_most = DEVICE - 2 * SECTOR
    assert first_header_offset(header(extent=at_most), sector=SECTOR, size=DEVICE) == 0
    assert first_header_offset(header(extent=at_most + 1), sector=SECTOR, size=DEVICE) == -1


@given(st.binary(max_size=600), st.binary(max_size=600))
def test_any_bytes_are_judged_in_printable_lines(head: bytes, tail: bytes) -> None:
    for data in (tail, header()[:20] + tail):
        errors = judged(head, data)
        assert errors, "random bytes are no dump"
        assert all(line.isprintable() for line in errors)


def test_what_savecore_leaves() -> None:
    left = cleared(header())
    assert (len(left), parse(left).magic, left[20:]) == (SIZE, CLEARED, header()[20:])
    assert header_errors(header(), left, sector=SECTOR, size=DEVICE) == ["the trailer is cleared, as by savecore: there is no dump"]


# info.0 of savecore 15.1, with the dump's length changed.
INFO = f"""\
Dump header from device: /dev/xbd2
  Architecture: amd64
  Architecture Version: 2
  Dump Length: {LENGTH}
  Blocksize: 512
  Compression: none
  Dumptime: 2026-12-01 04:40:12 +0000
  Hostname: fbsd
  Magic: FreeBSD Kernel Dump
  Version String: FreeBSD 15.1-RELEASE-p1 XENA
  Panic String: kdb_sysctl_panic
  Dump Parity: 1431655765
  Bounds: 0
  Dump Status: good
"""


def test_the_info_of_savecore_agrees_with_the_header() -> None:
    assert info_errors(INFO, parse(header())) == []


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        (f"Length: {LENGTH}", "Length: 7", "the Dump Length '7', the header '62914560'"),
        ("Status: good", "Status: bad", "the Dump Status 'bad'"),
        ("  Panic String: kdb_sysctl_panic\n", "", "the Panic String 'not at all'"),
        ("Compression: none", "Compression: \x1b[2J", r"'\x1b[2J'"),
    ],
)
def test_each_wrong_field_of_savecores_info_is_named(old: str, new: str, words: str) -> None:
    (complaint,) = info_errors(INFO.replace(old, new), parse(header()))
    assert words in complaint
