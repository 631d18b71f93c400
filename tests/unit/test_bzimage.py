"""The ELF file within a bzImage."""

from __future__ import annotations

import lzma
import struct

import pytest
import zstandard

from harness.errors import UsageError
from harness.lab.bzimage import vmlinux

ELF = b"\x7fELF" + bytes(range(256)) * 40
SETUP = 2


def image(packed: bytes, *, magic: bytes = b"HdrS", after: bytes = b"tail") -> bytes:
    """A bzImage of three sectors of setup, 100 bytes of its own unpacker, the packed kernel with its size, and what follows."""
    payload = packed + struct.pack("<I", len(ELF))
    head = bytearray((SETUP + 1) * 512)
    head[0x1F1] = SETUP
    head[0x202:0x206] = magic
    struct.pack_into("<II", head, 0x248, 100, len(payload))
    return bytes(head) + bytes(100) + payload + after


@pytest.mark.parametrize("packed", [zstandard.compress(ELF), lzma.compress(ELF, preset=1)], ids=["zstd", "xz"])
def test_unpacked(packed: bytes) -> None:
    assert vmlinux(image(packed)) == ELF


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"", "no HdrS at 0x202"),
        (image(zstandard.compress(ELF), magic=b"nope"), "no HdrS"),
        (image(b"\x1f\x8b" + bytes(50)), "something else than xz or zstd"),
        (image(zstandard.compress(b"no kernel")), "holds no ELF file, but b'no k'"),
        (image(b"\x28\xb5\x2f\xfd" + b"\xff" * 40), "cannot be unpacked"),
        (image(lzma.compress(ELF)[:100] + b"\0" * 40), "cannot be unpacked|holds no ELF"),
        (image(zstandard.compress(ELF))[:1700], "holds no ELF file|cannot be unpacked"),
    ],
)
def test_what_is_none_is_said(data: bytes, words: str) -> None:
    with pytest.raises(UsageError, match=words):
        vmlinux(data)
