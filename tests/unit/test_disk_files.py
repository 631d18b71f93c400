# SPDX-License-Identifier: BSD-2-Clause
"""Reading files from UFS and ZFS without mounting; damaged and hostile file systems give an error."""

from __future__ import annotations

import os
import shutil
import struct
from pathlib import Path
from typing import Any

import pytest

from harness.errors import UsageError
from harness.guests.bootable import make_ufs
from harness.images import makefs, rootfs, ufs, volume, window, zfsfiles, zfslabel
from harness.images.parttable import Partition
from harness.images.ufs import BadFileSystem, Superblock, Ufs
from harness.images.window import Window

needs_makefs = pytest.mark.skipif(makefs.find(None) is None, reason="needs makefs (Debian: makefs)")
needs_grub = pytest.mark.skipif(not shutil.which("grub-fstest"), reason="needs grub-fstest (Debian: grub-common)")
# Only FreeBSD's makefs writes UFS2 and ZFS, such as the one of a built world.
FREEBSD = os.environ.get("FXH_MAKEFS", "")
needs_freebsd = pytest.mark.skipif(not FREEBSD, reason="needs FreeBSD's makefs: FXH_MAKEFS=.../makefs")

BIG = bytes(range(256)) * (6 << 12)


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """Files of all sizes; short, long, relative and absolute links; and a circular link."""
    top = tmp_path / "tree"
    for name in ("boot/kernel", "etc", "sbin", "usr/a-directory-with-a-long-name-for-a-long-link-to-it/below"):
        (top / name).mkdir(parents=True)
    (top / "boot/kernel/kernel").write_bytes(BIG)
    (top / "etc/fstab").write_text("/dev/gpt/rootfs / ufs rw 1 1\n")
    (top / "etc/empty").write_bytes(b"")
    (top / "etc/short").symlink_to("fstab")
    (top / "etc/up").symlink_to("../../etc/./fstab")
    (top / "kernel").symlink_to("/boot/kernel/kernel")
    (top / "sys").symlink_to("boot")
    (top / "far").symlink_to("/" + "usr/a-directory-with-a-long-name-for-a-long-link-to-it/" * 1 + "below/../below/file")
    (top / "usr/a-directory-with-a-long-name-for-a-long-link-to-it/below/file").write_text("far away\n")
    (top / "circle").symlink_to("circle")
    for number in range(300):
        (top / f"usr/{number:03}").write_text(str(number))
    return top


def made(kind: str, bsize: int, tree: Path) -> Path:
    path = tree.parent / f"{kind}-{bsize}.img"
    if kind == "ufs1":
        make_ufs(tree, path, bsize=bsize, size="32m")
    else:
        options = f"version=2,bsize={bsize},fsize={bsize // 8},softupdates=1,label=rootfs"
        makefs.run([FREEBSD, "-t", "ffs", "-B", "little", "-s", "32m", "-o", options, str(path), str(tree)])
    return path


def superblock(path: Path) -> Superblock:
    with window.opened(path) as whole:
        found = ufs.superblock(whole)
    assert found is not None
    return found


KINDS = [
    *(pytest.param("ufs1", size, marks=needs_makefs) for size in (4096, 8192, 32768, 65536)),
    *(pytest.param("ufs2", size, marks=needs_freebsd) for size in (4096, 32768, 65536)),
]


@pytest.mark.parametrize(("kind", "bsize"), KINDS)
def test_every_file_of_a_ufs(tree: Path, kind: str, bsize: int) -> None:
    path = made(kind, bsize, tree)
    with window.opened(path) as whole:
        fs = ufs.superblock(whole)
        assert fs is not None
        assert (fs.version, fs.bsize, fs.pending) == (int(kind[-1]), bsize, "")
        files = Ufs(whole, fs)
        for name in ("boot/kernel/kernel", "kernel", "sys/kernel/kernel", "etc/../boot/kernel/kernel"):
            assert files.read(f"/{name}", 64 << 20) == BIG, name
        for name in ("etc/fstab", "etc/short", "etc/up"):
            assert files.read(f"/{name}", 1000) == b"/dev/gpt/rootfs / ufs rw 1 1\n", name
        assert files.read("/far", 100) == b"far away\n"
        assert files.read("/etc/empty", 0) == b""
        assert files.read("/usr/299", 10) == b"299"
        assert files.names("/usr") == tuple(sorted(path.name for path in (tree / "usr").iterdir()))
        assert (files.exists("/etc/fstab"), files.exists("/etc"), files.exists("/none"), files.exists("/etc/fstab/x")) == (
            True,
            True,
            False,
            False,
        )


@needs_makefs
@pytest.mark.parametrize(
    ("path", "why"),
    [
        ("/none", "/none: there is no 'none'"), ("/etc", "/etc is not a regular file"), ("/etc/fstab/x", "fstab is not a directory"),
        ("/circle", "more than 32 symbolic links"), ("/boot/kernel/kernel", "has 6291456 bytes; the limit is 1000"),
    ],
)  # fmt: skip
def test_files_that_are_not_read(tree: Path, path: str, why: str) -> None:
    with window.opened(made("ufs1", 8192, tree)) as whole:
        fs = ufs.superblock(whole)
        assert fs is not None
        with pytest.raises(BadFileSystem, match=why):
            Ufs(whole, fs).read(path, 1000)


@needs_grub
@needs_makefs
def test_grub_reads_the_same(tree: Path) -> None:
    """Compare with an independent reader."""
    path = made("ufs1", 8192, tree)
    with window.opened(path) as whole:
        fs = ufs.superblock(whole)
        assert fs is not None
        ours = Ufs(whole, fs).read("/boot/kernel/kernel", 64 << 20)
    theirs = b"".join(zfsfiles._run(["cat", "(loop0)/boot/kernel/kernel"], path, 64 << 20))
    assert ours == theirs == BIG


@needs_makefs
def test_a_hole_in_a_file_is_zeros(tree: Path) -> None:
    path = made("ufs1", 8192, tree)
    data = bytearray(path.read_bytes())
    # The first direct block in the kernel's inode, found by the size of the file.
    at = data.find(struct.pack("<Q", len(BIG))) + 32
    data[at : at + 4] = bytes(4)
    path.write_bytes(data)
    with window.opened(path) as whole:
        fs = ufs.superblock(whole)
        assert fs is not None
        assert Ufs(whole, fs).read("/boot/kernel/kernel", 64 << 20) == bytes(8192) + BIG[8192:]


def patched(path: Path, *pieces: tuple[int, bytes]) -> Path:
    with path.open("r+b") as file:
        for at, data in pieces:
            file.seek(at)
            file.write(data)
    return path


@needs_makefs
@pytest.mark.parametrize(
    ("clean", "flags", "words"),
    [
        (1, 0x00, ""), (1, 0x0A, ""), (0, 0x00, "it was not unmounted, so it needs fsck"),
        (0, 0x02, r"it was not unmounted \(soft updates, no journal\), so it needs fsck"),
        (0, 0x0A, "it was not unmounted, and its soft updates journal was not replayed"),
        (0, 0x40, "it was not unmounted, and its gjournal was not replayed"),
        (1, 0x04, "it is marked as needing a full fsck"), (1, 0x01, "it was not unmounted, so it needs fsck"),
    ],
)  # fmt: skip
def test_state_of_the_last_unmount(tree: Path, clean: int, flags: int, words: str) -> None:
    import re

    path = patched(
        made("ufs1", 8192, tree), (8192 + 209, bytes([clean])), (8192 + 211, bytes([0x80])), (8192 + 1312, struct.pack("<I", flags))
    )
    assert re.fullmatch(words, superblock(path).pending)


@needs_makefs
def test_superblocks_that_freebsd_refuses(tree: Path, tmp_path: Path) -> None:
    make_ufs(tree, tmp_path / "netbsd", version=2, size="32m")
    with window.opened(tmp_path / "netbsd") as whole:
        assert ufs.superblock(whole) is None, "NetBSD's makefs puts UFS2's superblock at 8192, and says so"
    groups = [(44, 0), (44, 1000), (184, 0), (184, 1), (184, 0x7FFFFFC0), (188, 0), (188, 0x7FFFFFFF)]
    for field, value in (*groups, (48, 3), (52, 0), (56, 9), (120, 1), (16, 0), (1372, 0x19960408)):
        path = patched(made("ufs1", 8192, tree), (8192 + field, struct.pack("<I", value)))
        with window.opened(path) as whole:
            assert ufs.superblock(whole) is None, field


@needs_makefs
def test_a_ufs_of_noise_gives_an_error(tree: Path) -> None:
    """Random data after a valid superblock, many times: the only error is BadFileSystem."""
    import random

    path = made("ufs1", 8192, tree)
    good = path.read_bytes()[: 1 << 20]
    for seed in range(40):
        chance = random.Random(seed)
        data = bytearray(good)
        for _ in range(200):
            data[chance.randrange(16384, len(data))] = chance.randrange(256)
        path.write_bytes(data)
        with window.opened(path) as whole:
            fs = ufs.superblock(whole)
            assert fs is not None
            files = Ufs(whole, fs)
            for name in ("/boot/kernel/kernel", "/etc/fstab", "/far", "/usr/100"):
                try:
                    files.read(name, 64 << 20)
                except BadFileSystem:
                    continue


# -- the label of a ZFS vdev ------------------------------------------------------------------------------------------


def nvlist(values: dict[str, Any], header: bool = True) -> bytes:
    """A packed nvlist in XDR, as zpool writes it."""

    def text(value: str) -> bytes:
        raw = value.encode()
        return struct.pack(">I", len(raw)) + raw + bytes(-len(raw) % 4)

    out = struct.pack(">II", 0, 1)
    for name, value in values.items():
        if isinstance(value, str):
            kind, count, body = 9, 1, text(value)
        elif isinstance(value, dict):
            kind, count, body = 19, 1, nvlist(value, False)
        elif isinstance(value, list):
            kind, count, body = 20, len(value), b"".join(nvlist(item, False) for item in value)
        else:
            kind, count, body = 8, 1, struct.pack(">Q", value)
        pair = text(name) + struct.pack(">II", kind, count) + body
        out += struct.pack(">II", len(pair) + 8, 0) + pair
    return (b"\x01\x01\0\0" if header else b"") + out + bytes(8)


def labelled(path: Path, *labels: tuple[int, dict[str, Any]], size: int = 64 << 20) -> Path:
    """A vdev with the given labels, by number."""
    path.write_bytes(b"")
    os.truncate(path, size)
    places = (0, 256 << 10, size - (512 << 10), size - (256 << 10))
    return patched(path, *((places[number] + (16 << 10), nvlist(data)) for number, data in labels))


def pool(path: Path) -> zfslabel.Pool | None:
    with window.opened(path) as whole:
        return zfslabel.read(whole)


def label(txg: int = 4, state: int = 1, vdev: str = "disk", **more: Any) -> dict[str, Any]:
    return {
        "version": 5000,
        "name": "zroot",
        "state": state,
        "txg": txg,
        "vdev_children": 1,
        "vdev_tree": {"type": vdev, "id": 0},
        **more,
    }


def test_the_newest_label_counts(tmp_path: Path) -> None:
    assert pool(labelled(tmp_path / "a", (0, label(4, 1)), (3, label(9, 0)))) == zfslabel.Pool("zroot", "active", "disk", 1)
    assert pool(labelled(tmp_path / "b", (2, label(4, 1)))) == zfslabel.Pool("zroot", "exported", "disk", 1)
    assert pool(labelled(tmp_path / "c")) is None
    assert pool(labelled(tmp_path / "d", (0, label(4, 1)), (1, {"name": "spare", "state": 3}))) is not None


@pytest.mark.parametrize(
    ("data", "alone"),
    [
        (label(), True), (label(vdev="file"), True), (label(vdev="mirror"), False), (label(vdev_children=2), False),
        (label(vdev="raidz", children=[{"type": "disk"}, {"type": "disk"}]), False),
    ],
)  # fmt: skip
def test_pool_on_one_disk(tmp_path: Path, data: dict[str, Any], alone: bool) -> None:
    found = pool(labelled(tmp_path / "a", (0, data)))
    assert found is not None
    assert found.alone is alone


def test_hostile_nvlists_give_an_error() -> None:
    good = nvlist(label())
    deep: dict[str, Any] = {}
    for _ in range(20):
        deep = {"a": deep}
    for data in (
        b"",
        good[:3],
        b"\x00" + good[1:],
        good[:40],
        nvlist(deep),
        good[:12] + b"\xff" * 40,
        good[:12] + bytes(3) + b"\x01" + good[16:],
    ):
        with pytest.raises(ValueError, match=r"nvlist|pair|text"):
            zfslabel.parse(data)
    # A list that claims to contain itself costs no more than its bytes.
    pair = struct.pack(">II", 1 << 20, 0) + struct.pack(">I", 1) + b"a\0\0\0" + struct.pack(">II", 19, 1)
    with pytest.raises(ValueError, match="pair"):
        zfslabel.parse(b"\x01\x01\0\0" + bytes(8) + pair * 5000)


# -- files of ZFS -----------------------------------------------------------------------------------------------------


def program(directory: Path, monkeypatch: pytest.MonkeyPatch, body: str) -> None:
    """Install a grub-fstest with the given shell script."""
    directory.mkdir(exist_ok=True)
    path = directory / "grub-fstest"
    path.write_text(f"#!/bin/sh\n{body}\n")
    path.chmod(0o755)
    monkeypatch.setenv("PATH", f"{directory}:{os.environ['PATH']}")


def test_output_of_grub_fstest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program(tmp_path / "bin", monkeypatch, 'case $2 in ls) echo "@/ ROOT/ home/ a;b/ $3";; cat) printf "%s" "$3";; esac')
    files = zfsfiles.ZfsFiles(tmp_path / "disk", "loop0,gpt4", "ROOT/default")
    assert files.names("/") == ("ROOT", "home")
    assert files.read("/etc/fstab", 100) == b"(loop0,gpt4)/ROOT/default/@/etc/fstab"
    assert zfsfiles.ZfsFiles(tmp_path / "disk", "loop0").read("/etc/fstab", 100) == b"(loop0)/@/etc/fstab"
    assert (files.exists("/home"), files.exists("/none")) == (True, False)
    with pytest.raises(BadFileSystem, match="has more than 10 bytes"):
        files.read("/etc/fstab", 10)


def test_a_program_that_fails_or_hangs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = zfsfiles.ZfsFiles(tmp_path / "disk", "loop0")
    program(tmp_path / "bin", monkeypatch, 'echo "grub-fstest: error: cannot open \\`/x\': unsupported feature." >&2; exit 1')
    with pytest.raises(BadFileSystem, match=r"^cannot open `/x': unsupported feature\.$"):
        files.read("/x", 10)
    monkeypatch.setattr(zfsfiles, "_PATIENCE", 0.3)
    program(tmp_path / "bin", monkeypatch, "exec sleep 60")
    with pytest.raises(BadFileSystem, match=r"cat ended with -9"):
        files.read("/x", 10)
    monkeypatch.setenv("PATH", str(tmp_path))
    (tmp_path / "disk").write_bytes(bytes(512))
    part = Partition("xbd0p4", "freebsd-zfs", 0, 512)
    with (
        pytest.raises(UsageError, match="apt-get install grub-common"),
        window.opened(tmp_path / "disk") as whole,
        zfsfiles.opened(tmp_path / "disk", whole, part, False),
    ):
        pass


@needs_freebsd
@needs_grub
def test_files_of_a_pool_that_freebsds_makefs_made(tree: Path) -> None:
    path = tree.parent / "z.img"
    options = [
        "poolname=zroot",
        "bootfs=zroot/ROOT/default",
        "rootpath=/",
        "fs=zroot;mountpoint=none",
        "fs=zroot/ROOT;mountpoint=none",
    ]
    options.append("fs=zroot/ROOT/default;mountpoint=/;canmount=noauto")
    makefs.run([FREEBSD, "-t", "zfs", "-s", "128m", *(word for option in options for word in ("-o", option)), str(path), str(tree)])
    assert pool(path) == zfslabel.Pool("zroot", "exported", "disk", 1)
    with window.opened(path) as whole, zfsfiles.opened(path, whole, Partition("xbd0", "", 0, whole.size), True) as top:
        assert top.datasets() == ("ROOT",)
        files = zfsfiles.ZfsFiles(top.image, top.device, "ROOT/default")
        for name in ("boot/kernel/kernel", "etc/fstab", "etc/short", "sys/kernel/kernel"):
            assert files.read(f"/{name}", 64 << 20) == (tree / name).read_bytes()
    # If GRUB cannot open the partition, it is copied, and the copy removed.
    with window.opened(path) as whole, zfsfiles.opened(path, whole, Partition("xbd0s1a", "", 0, whole.size), False) as top:
        assert top.image != path
        assert zfsfiles.ZfsFiles(top.image, top.device, "ROOT/default").read("/etc/fstab", 100) == (tree / "etc/fstab").read_bytes()
    assert not top.image.exists()


# -- what a volume holds ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("pieces", "kind"),
    [
        ([], ""), ([(1080, b"\x53\xef")], "ext2/3/4"), ([(54, b"FAT16   ")], "FAT"), ([(32769, b"CD001")], "ISO 9660"),
        ([((1 << 20) - 512, b"GEOM::ELI\0")], "geli"), ([(0, b"LUKS\xba\xbe")], "LUKS (encrypted)"),
    ],
)  # fmt: skip
def test_other_contents_of_a_partition(tmp_path: Path, pieces: list[tuple[int, bytes]], kind: str) -> None:
    (tmp_path / "v").write_bytes(bytes(1 << 20))
    with window.opened(patched(tmp_path / "v", *pieces)) as whole:
        assert volume.inspect(whole, Partition("xbd0", "", 0, whole.size)).kind == kind


# -- the configuration of a root --------------------------------------------------------------------------------------


def test_loader_conf() -> None:
    text = '# kernel="no"\nkernel="kernel.old"  # the last good one\nzfs_load=YES\n console = "comconsole,vidconsole"\nx="a b\nbeastie=\nkernel="two"\n'
    assert rootfs.variables(text) == {"kernel": "two", "zfs_load": "YES", "console": "comconsole,vidconsole", "beastie": ""}


@pytest.mark.parametrize(
    ("loader", "paths"),
    [
        ({}, ["/boot/kernel/kernel", "/boot/kernel/kernel.gz"]),
        ({"kernel": "kernel.old", "bootfile": "k"}, ["/boot/kernel.old/k", "/boot/kernel.old/k.gz"]),
        ({"kernel": "/boot/mine"}, ["/boot/mine/kernel", "/boot/mine/kernel.gz", "/boot/mine", "/boot/mine.gz"]),
    ],
)
def test_where_the_loader_looks_for_the_kernel(loader: dict[str, str], paths: list[str]) -> None:
    assert rootfs.kernels(loader) == tuple(paths)


def test_fstab() -> None:
    assert (
        rootfs.fstab_root("# / x\n\n/dev/gpt/swapfs none swap sw 0 0\n/dev/gpt/rootfs\t/\tufs\trw,noatime\t1 1\n") == "gpt/rootfs"
    )
    assert rootfs.fstab_root("/dev/gpt/swapfs none swap sw 0 0\n/dev/a /usr ufs rw\n") == ""


@pytest.mark.parametrize(
    ("loader", "flags", "serial"),
    [
        ({}, "", False), ({"console": "vidconsole"}, "", False), ({"console": "comconsole"}, "", True), ({"boot_multicons": "YES"}, "", True),
        ({"boot_serial": "NO"}, "", False), ({}, "-D\n", True), ({}, "-v", False), ({}, "-S115200", False), ({}, "/boot/loader -h", True),
    ],
)  # fmt: skip
def test_whether_the_serial_port_is_used(loader: dict[str, str], flags: str, serial: bool) -> None:
    assert rootfs.Root("", loader, flags, "", {}).serial is serial


def test_a_file_system_sees_only_its_window(tmp_path: Path) -> None:
    assert Window(-1, 10, 20).part(5, 100) == Window(-1, 15, 15)
