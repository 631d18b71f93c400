# SPDX-License-Identifier: BSD-2-Clause
"""Partition tables, read back by independent tools."""

from __future__ import annotations

import json
import os
import shutil
import struct
import subprocess
from pathlib import Path

import pytest

from harness.images import diskimport, tables
from harness.images.tables import SECTOR, Part

PATH = f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin"
sfdisk = pytest.mark.skipif(shutil.which("sfdisk", path=PATH) is None, reason="needs sfdisk (Debian: fdisk)")


def write(path: Path, sectors: int, *parts: tuple[int, bytes]) -> Path:
    with path.open("wb") as file:
        file.truncate(sectors * SECTOR)
        for at, data in parts:
            file.seek(at * SECTOR)
            file.write(data)
    return path


def dump(path: Path) -> dict[str, object]:
    done = subprocess.run(["sfdisk", "--json", str(path)], capture_output=True, text=True, check=True, env={"PATH": PATH})
    table: dict[str, object] = json.loads(done.stdout)["partitiontable"]
    assert "warning" not in done.stderr.lower(), done.stderr
    return table


@sfdisk
def test_sfdisk_reads_the_mbr(tmp_path: Path) -> None:
    disk = write(tmp_path / "disk", 20480, (0, tables.mbr(63, 20000, code=b"\xeb\xfe")))
    table = dump(disk)
    assert table["label"] == "dos"
    assert [(p["start"], p["size"], p["type"], p["bootable"]) for p in table["partitions"]] == [(63, 20000, "a5", True)]  # type: ignore[attr-defined]


@sfdisk
def test_sfdisk_reads_the_gpt(tmp_path: Path) -> None:
    parts = [Part("freebsd-boot", 40, 1024, "bootfs"), Part("freebsd-ufs", 4096, 8192, "rootfs"), Part("freebsd-swap", 12288, 2048)]
    first, last = tables.gpt(20480, parts, seed="x", code=b"\xeb\xfe")
    disk = write(tmp_path / "disk", 20480, (0, first), (20480 - tables.GPT_TAIL, last))
    table = dump(disk)
    assert table["label"] == "gpt"
    assert (table["firstlba"], table["lastlba"]) == (34, 20480 - 34)
    rows = [(p["start"], p["size"], p["type"].lower(), p.get("name", "")) for p in table["partitions"]]  # type: ignore[attr-defined]
    assert rows == [(p.start, p.size, tables.GPT_TYPES[p.type], p.name) for p in parts]
    verified = subprocess.run(["sfdisk", "--verify", str(disk)], capture_output=True, text=True, env={"PATH": PATH}, check=False)
    assert "No errors detected" in verified.stdout + verified.stderr


@sfdisk
def test_sfdisk_sees_a_damaged_gpt(tmp_path: Path) -> None:
    """Prove that the check above can fail: sfdisk reports one changed byte."""
    first, last = tables.gpt(20480, [Part("freebsd-ufs", 4096, 8192)], seed="x")
    broken = bytearray(first)
    broken[1024 + 40] ^= 1
    disk = write(tmp_path / "disk", 20480, (0, bytes(broken)), (20480 - tables.GPT_TAIL, last))
    done = subprocess.run(["sfdisk", "--json", str(disk)], capture_output=True, text=True, check=False, env={"PATH": PATH})
    assert "corrupt" in done.stderr.lower()


@pytest.mark.skipif(shutil.which("fdisk", path=PATH) is None, reason="needs fdisk")
def test_fdisk_reads_the_disklabel(tmp_path: Path) -> None:
    label = tables.disklabel(20000, [Part("freebsd-ufs", 16, 15000), Part("freebsd-swap", 15016, 4984)])
    disk = write(tmp_path / "slice", 20000, (1, label))
    done = subprocess.run(
        ["fdisk", "-l", str(disk)], capture_output=True, text=True, check=False, env={"PATH": PATH, "LC_ALL": "C"}
    )
    assert "Disklabel type: bsd" in done.stdout
    words = [line.split() for line in done.stdout.splitlines()]
    rows = {w[0]: w[1:4] for w in words if len(w) >= 5 and w[1].isdigit()}
    assert [row for name, row in sorted(rows.items()) if name.endswith("a")] == [["16", "15015", "15000"]]
    assert [row for name, row in sorted(rows.items()) if name.endswith("b")] == [["15016", "19999", "4984"]]


def test_disklabel_checksum_is_zero() -> None:
    label = tables.disklabel(20000, [Part("freebsd-ufs", 0, 20000)])
    total = 0
    for (word,) in struct.iter_unpack("<H", label):
        total ^= word
    assert total == 0
    assert len(label) == 276


def test_the_same_gpt_twice() -> None:
    parts = [Part("freebsd-ufs", 4096, 8192)]
    assert tables.gpt(20480, parts, seed="x") == tables.gpt(20480, parts, seed="x")
    assert tables.gpt(20480, parts, seed="x") != tables.gpt(20480, parts, seed="y")


def test_the_root_of_a_disk_from_its_tables_only(tmp_path: Path) -> None:
    first, last = tables.gpt(20480, [Part("freebsd-swap", 40, 8), Part("freebsd-ufs", 4096, 8192)], seed="x", code=b"\xeb\xfe")
    gpt = write(tmp_path / "gpt", 20480, (0, first), (20480 - tables.GPT_TAIL, last))
    mbr = write(tmp_path / "mbr", 20480, (0, tables.mbr(63, 20000)))
    blank = write(tmp_path / "blank", 20480)
    assert [diskimport.guess_root(p) for p in (gpt, mbr, blank)] == [("xbd0p2", True), ("xbd0s1a", False), ("", False)]
