# SPDX-License-Identifier: BSD-2-Clause
"""Reproducible images, IDs of file systems, and files with holes."""

from __future__ import annotations

import hashlib
import os
import random
import re
import shutil
import struct
import subprocess
import time
from dataclasses import replace
from pathlib import Path

import pytest

from harness.errors import BuildError, UsageError
from harness.guests import bootable
from harness.images import disks, holes, layout, loader_conf_slot, makefs, metalog, settle, ufs, window, zfsfiles
from harness.images.disks import BootCode
from harness.images.layout import FileSystem
from harness.images.makefs import Makefs
from harness.images.ufs import Ufs

# FreeBSD's makefs, which UFS2 and ZFS need; Debian's package is NetBSD's.
FREEBSD = os.environ.get("FXH_MAKEFS", "")
NETBSD = shutil.which("makefs", path=f"{os.environ['PATH']}:/usr/sbin")
needs_netbsd = pytest.mark.skipif(not NETBSD, reason="needs makefs")
needs_freebsd = pytest.mark.skipif(not FREEBSD, reason="needs FreeBSD's makefs: FXH_MAKEFS=.../makefs")
needs_mke2fs = pytest.mark.skipif(not shutil.which("mke2fs", path=f"{os.environ['PATH']}:/usr/sbin"), reason="needs e2fsprogs")

METALOG = """#mtree 2.0
. type=dir uname=root gname=wheel mode=0755
./boot type=dir uname=root gname=wheel mode=0755
./boot/kernel type=dir uname=root gname=wheel mode=0755
./boot/kernel/kernel type=file uname=root gname=wheel mode=0555
./boot/loader.conf.local type=file uname=root gname=wheel mode=0644
./etc type=dir uname=root gname=wheel mode=0755
./etc/group type=file uname=root gname=wheel mode=0644
./usr type=dir uname=root gname=wheel mode=0755
./usr/file type=file uname=root gname=wheel mode=0644
./usr/link type=link uname=root gname=wheel mode=0777 link=file
"""
MAKERS = [pytest.param("netbsd", marks=needs_netbsd), pytest.param("freebsd", marks=needs_freebsd)]


def maker(name: str) -> Makefs:
    return Makefs(Path(FREEBSD), True, "FXH_MAKEFS") if name == "freebsd" else Makefs(Path(str(NETBSD)), False, "Debian's")


@pytest.fixture
def world(tmp_path: Path) -> Path:
    top = tmp_path / "world"
    for name in ("boot/kernel", "etc", "usr"):
        (top / name).mkdir(parents=True)
    (top / "boot/kernel/kernel").write_bytes(b"k" * 300_000)
    (top / "boot/loader.conf.local").write_bytes(loader_conf_slot.text({}))
    (top / "usr/file").write_text("a file\n")
    (top / "etc/master.passwd").write_text("root::0:0::0:0:r:/root:/bin/sh\n")
    (top / "etc/group").write_text("wheel:*:0:root\n")
    for name in ("pmbr", "gptboot", "gptzfsboot", "mbr", "boot", "loader.efi"):
        (top / "boot" / name).write_bytes(name.encode() * 100)
    return top


def tree(world: Path) -> metalog.Tree:
    return metalog.parse(METALOG, world)


def superblock(path: Path, at: int = 0) -> ufs.Superblock:
    with window.opened(path) as whole:
        found = ufs.superblock(whole.part(at, whole.size))
    assert found is not None
    return found


def digests(directory: Path) -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(directory.iterdir())}


def layouts() -> list[object]:
    found: list[object] = []
    for name in layout.available():
        kinds = {fs.type for _, _, fs in layout.load(name).parts}
        marks = [needs_freebsd] if kinds & {"ufs2", "zfs"} else [needs_netbsd]
        marks += [needs_mke2fs] if "ext2" in kinds else []
        found.append(pytest.param(name, marks=marks))
    return found


@pytest.mark.parametrize("name", layouts())
def test_the_same_inputs_make_the_same_disks(name: str, world: Path, tmp_path: Path) -> None:
    """Independent of the time, the user and the times of the world's files."""
    planned = layout.load(name)
    small = replace(planned, vdevs=tuple(
        replace(disk, fs=tuple(replace(fs, size=min(fs.size, 256 if fs.type == "zfs" else 64)) for fs in disk.fs)) for disk in planned.vdevs
    ))  # fmt: skip
    tool = maker("freebsd" if planned.root_type in ("ufs2", "zfs") else "netbsd")
    made = []
    for moment, mask in ((1_500_000_000, 0o022), (1_900_000_000, 0o077)):
        for path in (world, *world.rglob("*")):
            os.utime(path, (moment, moment + 1))
        target = tmp_path / str(moment)
        before = os.umask(mask)
        try:
            target.mkdir()
            disks.write(small, tree(world), tool, world / "etc", BootCode(world / "boot"), "seed", target, {})
        finally:
            os.umask(before)
        made.append(digests(target))
        time.sleep(1.1)
    assert made[0] == made[1]
    assert len(made[0]) == len(planned.vdevs)


@needs_netbsd
def test_each_file_system_has_another_id(world: Path, tmp_path: Path) -> None:
    """The superblock's copies have the same ID: fsck uses them if the first is damaged."""
    found = set()
    for seed in ("one image", "another"):
        target = tmp_path / seed
        target.mkdir()
        planned = layout.load("vdevs", size=64)
        disks.write(planned, tree(world), maker("netbsd"), world / "etc", BootCode(world / "boot"), seed, target, {})
        for name in ("xvda", "xvdb"):
            data, fs = (target / f"{name}.img").read_bytes(), superblock(target / f"{name}.img")
            (sblkno,) = struct.unpack_from("<i", data, fs.place + 8)
            places = [fs.place, *((fs.group(n) + sblkno) * fs.fsize for n in range(fs.ncg))]
            assert {data[place + 1372 : place + 1376] for place in places} == {b"\x54\x19\x01\0"}
            (identity,) = {struct.unpack_from("<2i", data, place + 144) for place in places}
            assert min(identity) > 0
            found.add(identity)
    assert len(found) == 4


@pytest.mark.parametrize("name", MAKERS)
@pytest.mark.parametrize("bsize", layout.BLOCK_SIZES)
def test_a_block_of_space_behind_each_ufs(name: str, bsize: int, world: Path, tmp_path: Path) -> None:
    """libfsimage reads whole blocks of a directory, even if it consists of one fragment, the last of the volume."""
    fs = FileSystem("/", "ufs1", 40, bsize)
    makefs.ufs(maker(name), fs, tree(world), world / "etc", tmp_path / "a.img", "FBROOT", "seed")
    assert (tmp_path / "a.img").stat().st_size == fs.bytes
    found = superblock(tmp_path / "a.img")
    (fragments,) = struct.unpack_from("<i", (tmp_path / "a.img").read_bytes(), found.place + 36)
    assert fs.bytes - 2 * bsize < fragments * found.fsize <= fs.bytes - bsize
    with window.opened(tmp_path / "a.img") as whole:
        assert Ufs(whole, found).read("usr/link", 100) == b"a file\n"
        assert found.pending == ""


@needs_netbsd
@pytest.mark.parametrize("bsize", [4096, 8192, 65536])
def test_a_volume_for_pygrub_has_the_space_too(bsize: int, tmp_path: Path) -> None:
    bootable.write_tree(tmp_path / "tree", {"boot/kernel/kernel": b"kernel"})
    bootable.make_ufs(tmp_path / "tree", tmp_path / "a.img", bsize=bsize, size="5m")
    (fragments,) = struct.unpack_from("<i", (tmp_path / "a.img").read_bytes(), 8192 + 36)
    assert (tmp_path / "a.img").stat().st_size == fragments * superblock(tmp_path / "a.img").fsize + bsize


@needs_mke2fs
def test_ext2_belongs_to_root_and_passes_fsck(world: Path, tmp_path: Path) -> None:
    for path in (world, *world.rglob("*")):
        os.chown(path, 1234, 4321) if os.geteuid() == 0 else None
    makefs.ext2(FileSystem("/boot", "ext2", 32), tree(world), tmp_path / "a.img", "seed")
    path = f"{os.environ['PATH']}:/usr/sbin"
    assert subprocess.run([str(shutil.which("e2fsck", path=path)), "-fn", str(tmp_path / "a.img")], check=False).returncode == 0
    argv = [str(shutil.which("debugfs", path=path)), "-R", "stat /boot/kernel/kernel", str(tmp_path / "a.img")]
    said = subprocess.run(argv, capture_output=True, text=True, check=True).stdout
    assert re.search(r"User:\s+0\s+Group:\s+0\s", said)
    assert re.findall(r"(\w*time): (0x[0-9a-f]+):0+ ", said) == [(f"{name}time", "0x6553f100") for name in ("c", "a", "m", "cr")]


def test_a_volume_that_is_no_ufs(tmp_path: Path) -> None:
    (tmp_path / "none").write_bytes(bytes(1 << 20))
    with pytest.raises(BuildError, match="not a UFS"):
        settle.ufs_volume(tmp_path / "none", 1, 1)
    assert holes.punch(tmp_path / "none") == 0


# -- holes ------------------------------------------------------------------------------------------------------------

NOISE = random.Random(1).randbytes(100_000)
SPARSE = {
    "of the case": NOISE + bytes(900_000) + NOISE,
    "single": bytes(3_000_000) + b"end",
    "double": NOISE[:10_000] + bytes(9_000_000) + b"x",
    "many": b"".join(NOISE[: n * 1000] + bytes(n * 10_000) for n in range(1, 40)),
    "all": bytes(500_000),
    "none": NOISE,
    "small": bytes(100),
}


def expected(data: bytes, bsize: int) -> int:
    """The number of blocks of zeros, without the last one."""
    blocks = [data[at : at + bsize] for at in range(0, len(data), bsize)]
    return sum(not any(block) for block in blocks[:-1])


@needs_netbsd
@pytest.mark.parametrize("bsize", [4096, 8192, 32768, 65536])
def test_blocks_of_zeros_are_holes(bsize: int, tmp_path: Path) -> None:
    bootable.write_tree(tmp_path / "tree", {f"{name}/file": data for name, data in SPARSE.items()})
    bootable.make_ufs(tmp_path / "tree", tmp_path / "a.img", bsize=bsize, size="40m")
    with window.opened(tmp_path / "a.img") as whole:
        found = Ufs(whole, superblock(tmp_path / "a.img"))
        for name, data in SPARSE.items():
            assert bootable.holes_in(tmp_path / "a.img", f"{name}/file") == expected(data, bsize), name
            assert found.read(f"{name}/file", 1 << 30) == data, name
    if shutil.which("grub-fstest"):
        for name in ("of the case", "single", "many", "none"):
            theirs = b"".join(zfsfiles._run(["cat", f"(loop0)/{name}/file"], tmp_path / "a.img", 64 << 20))
            assert theirs == SPARSE[name], name


@needs_netbsd
def test_a_reader_without_holes_does_not_read_zeros(tmp_path: Path) -> None:
    """A reader without holes fails the case: block 0 and the freed blocks have other bytes."""
    bootable.write_tree(tmp_path / "tree", {"boot/kernel/kernel": SPARSE["of the case"]})
    bootable.make_ufs(tmp_path / "tree", tmp_path / "a.img", size="5m")
    assert bootable.holes_in(tmp_path / "a.img", "boot/kernel/kernel") == 109
    data = (tmp_path / "a.img").read_bytes()
    assert all(data[:8192])
    assert data.count(holes._noise(8192)) == 109 + 1
    with pytest.raises(UsageError, match="there is no 'none'"):
        bootable.holes_in(tmp_path / "a.img", "none")
    (tmp_path / "b.img").write_bytes(bytes(1 << 20))
    assert bootable.holes_in(tmp_path / "b.img", "boot") == 0


@needs_freebsd
def test_holes_in_ufs2(tmp_path: Path) -> None:
    bootable.write_tree(tmp_path / "tree", {"kernel": SPARSE["double"]})
    options = "version=2,bsize=4096,fsize=512"
    makefs.run([FREEBSD, "-t", "ffs", "-B", "little", "-s", "20m", "-o", options, str(tmp_path / "a.img"), str(tmp_path / "tree")])
    assert holes.punch(tmp_path / "a.img") == bootable.holes_in(tmp_path / "a.img", "kernel") == expected(SPARSE["double"], 4096)
    with window.opened(tmp_path / "a.img") as whole:
        assert Ufs(whole, superblock(tmp_path / "a.img")).read("kernel", 1 << 30) == SPARSE["double"]
