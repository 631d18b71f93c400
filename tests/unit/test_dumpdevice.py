# SPDX-License-Identifier: BSD-2-Clause
"""Reading a dump device: real dd on files of our own."""

from __future__ import annotations

import hashlib
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from harness.errors import CommandFailed
from harness.guests.dumpdevice import DumpDevice, digest
from harness.oracles import kerneldump
from harness.transport.local import LocalTransport
from suites.boot import test_dump
from tests.unit.test_kerneldump import header

MIB = 1 << 20
START, SIZE, DISK, LENGTH = MIB, 4 * MIB, 6 * MIB, 8192


@pytest.fixture
def disk(tmp_path: Path) -> Path:
    """A disk with a dump at the end of a partition, between two neighbours."""
    path = tmp_path / "disk"
    block = header(length=LENGTH, extent=LENGTH)
    dump = block + b"dump" * (LENGTH // 4) + block
    path.write_bytes(b"a" * START + (b"s" * (SIZE - len(dump)) + dump) + b"z" * (DISK - START - SIZE))
    return path


def md5(data: bytes) -> str:
    return hashlib.md5(data, usedforsecurity=False).hexdigest()


def test_headers_and_dump_of_a_partition(disk: Path) -> None:
    device = DumpDevice(LocalTransport(), str(disk), SIZE, start=START)
    head, tail = device.headers()
    assert kerneldump.header_errors(head, tail, sector=512, size=SIZE) == []
    assert device.dump_digest(tail) == md5(b"dump" * (LENGTH // 4))


def test_the_rest_of_the_disk_is_all_but_the_partition(disk: Path) -> None:
    device = DumpDevice(LocalTransport(), str(disk), SIZE, start=START)
    data = disk.read_bytes()
    assert device.digest_of_rest(DISK) == md5(data[:START] + data[START + SIZE :])
    for place, inside in ((0, False), (START - 1, False), (START, True), (START + SIZE - 1, True), (DISK - 1, False)):
        before = device.digest_of_rest(DISK)
        changed = bytearray(data)
        changed[place] ^= 1
        disk.write_bytes(changed)
        assert (device.digest_of_rest(DISK) == before) is inside
        disk.write_bytes(data)


def test_a_disk_that_cannot_be_read_has_no_digest(tmp_path: Path) -> None:
    with pytest.raises(CommandFailed, match="No such file"):
        digest(LocalTransport(), str(tmp_path / "gone"), (0, 512))


def test_a_disk_that_ends_before_the_device(disk: Path) -> None:
    disk.write_bytes(disk.read_bytes()[: START + SIZE - 512])
    head, tail = DumpDevice(LocalTransport(), str(disk), SIZE, start=START).headers()
    assert (head, tail) == (b"", b"")
    assert "has 0 bytes" in kerneldump.header_errors(head, tail, sector=512, size=SIZE)[0]


def test_the_digest_of_a_whole_disk(disk: Path) -> None:
    assert digest(LocalTransport(), str(disk), (0, DISK)) == md5(disk.read_bytes())


def test_the_swap_wins_over_the_dump_device_of_the_harness(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a guest with ``--keep dump``, whose loader has set dumpdev."""
    variables = {"dumpdev": "xbd14"}
    asked: list[str] = []

    def sh(command: str, *words: object) -> str:
        if "dumpon start" in command:
            asked.append(variables.get("dumpdev", "xbd0p3"))
        if "readlink" in command:
            raise StopIteration
        return "1 PART xbd0p3 67108864 512 i 3 o 1073774592 ty freebsd-swap"

    def run(command: str, *, check: bool) -> None:
        variables.pop(command.removeprefix("kenv -u "))

    monkeypatch.setattr(test_dump.rootfs, "provider", lambda sh, name: name)
    guest: Any = SimpleNamespace(sh=sh, run=run)
    with pytest.raises(StopIteration):
        test_dump.panic_into_swap(guest, "xbd0p3", "/disk", 1 << 30, SimpleNamespace())  # type: ignore[arg-type]
    assert asked == ["xbd0p3"]
