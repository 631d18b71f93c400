# SPDX-License-Identifier: BSD-2-Clause
"""Reading a disk image: its format, root, kernel and guest types; or the reason why it cannot run."""

from __future__ import annotations

import gzip
import lzma
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from harness import paths
from harness.digest import file_sha256, known_sha256
from harness.errors import HarnessError, InfrastructureError, UsageError
from harness.guests import filehash
from harness.guests.bootable import make_ufs
from harness.guests.os import freebsd_source
from harness.images import diskformat, diskimage, diskimport, makefs, parttable, recipe, recipes, tables
from harness.images.tables import SECTOR, Part
from tests.unit.test_disk_files import FREEBSD, label, labelled, needs_freebsd, needs_grub, needs_makefs, patched
from tests.unit.test_disk_tables import gpt
from tests.unit.test_image_parts import elf

FSTAB = "# Device\tMountpoint\n/dev/gpt/rootfs\t/\tufs\trw,noatime\t1 1\n"
NEW = b"FreeBSD 14.2-RELEASE GENERIC\0"
ZFS = NEW + b"ZFS storage pool version: "
needs_qemu_img = pytest.mark.skipif(not shutil.which("qemu-img"), reason="needs qemu-img (Debian: qemu-utils)")


@pytest.fixture(autouse=True)
def own_store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("FXH_STORE", str(tmp_path / "store"))
    return tmp_path / "store"


def root_tree(top: Path, *, kernel: bytes | None = None, fstab: str = FSTAB, loader: str = 'boot_multicons="YES"\n') -> Path:
    """A root with ``kernel``, by default one with Xen's note for PVH."""
    for name in ("boot/kernel", "etc", "sbin", "bin"):
        (top / name).mkdir(parents=True)
    (top / "sbin/init").write_bytes(b"init")
    (top / "bin/sh").write_bytes(b"sh" * 9999)
    if kernel is None:
        elf(top / "boot/kernel/kernel", text=NEW)
    else:
        (top / "boot/kernel/kernel").write_bytes(kernel)
    (top / "etc/fstab").write_text(fstab)
    (top / "boot/loader.conf").write_text(loader)
    return top


def disk_of(path: Path, *file_systems: Path, kind: str = "freebsd-ufs", code: bytes = b"\xeb\xfe") -> Path:
    """A GPT disk as the official images: ESP, boot code, swap, then ``file_systems``, of which the first is rootfs."""
    parts = [
        Part("efi", 40, 1000, "efiboot0"),
        Part("freebsd-boot", 1040, 200, "bootfs"),
        Part("freebsd-swap", 2048, 2048, "swapfs"),
    ]
    at, places = 4096, []
    for number, fs in enumerate(file_systems):
        size = fs.stat().st_size // SECTOR
        parts.append(Part(kind, at, size, "rootfs" if number == 0 else f"root{number}"))
        places.append(at)
        at += size
    first, last = tables.gpt(at + 2048, parts, seed=path.name, code=code)
    with path.open("wb") as out:
        out.truncate((at + 2048) * SECTOR)
        for fs, place in zip(file_systems, places, strict=True):
            out.seek(place * SECTOR)
            out.write(fs.read_bytes())
        out.seek(0)
        out.write(first)
        out.seek((at + 2048) * SECTOR - len(last))
        out.write(last)
    return path


def ufs_of(tree: Path) -> Path:
    path = tree.with_name(f"{tree.name}.ufs")
    make_ufs(tree, path, size="16m")
    return path


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    return root_tree(tmp_path / "tree")


@pytest.fixture
def disk(tree: Path, tmp_path: Path) -> Path:
    """A disk with a FreeBSD root."""
    return disk_of(tmp_path / "FreeBSD.raw", ufs_of(tree))


def left(own_store: Path) -> list[str]:
    """The files in the store, without locks."""
    return sorted(str(p.relative_to(own_store)) for p in own_store.rglob("*") if p.is_file() and not p.name.endswith(".lock"))


# -- a disk that can be run -------------------------------------------------------------------------------------------


@needs_makefs
def test_a_run_needs_only_the_disk(disk: Path, tree: Path) -> None:
    before = file_sha256(disk)
    image = diskimage.read_image(disk)
    assert (image.version, image.types, image.root, image.mountfrom) == (
        "14.2",
        ("pvh", "hvm"),
        "gpt/rootfs",
        "ufs:/dev/gpt/rootfs",
    )
    assert (image.root_device, image.firmwares, image.name) == ("xbd0p4", ("bios",), "FreeBSD.raw")
    assert image.kernel is not None
    assert image.kernel.read_bytes() == (tree / "boot/kernel/kernel").read_bytes()
    assert image.disks[0].file == disk, "the file itself, and no copy of it"
    assert image.data["files"] == {
        f"/{name}": file_sha256(tree / name)
        for name in ("boot/loader.conf", "etc/fstab", "boot/kernel/kernel", "bin/sh", "sbin/init")
    }
    assert file_sha256(disk) == before
    given = freebsd_source.from_image(image)
    assert (given.root, given.label, given.kernel) == ("gpt/rootfs", "freebsd-14.2", image.kernel)
    assert given.os.default_variables(given.root, False)["vfs.root.mountfrom"] == "ufs:/dev/gpt/rootfs"
    assert given.inputs["disk"] == f"FreeBSD.raw sha256:{before}"


@needs_makefs
def test_the_second_time_nothing_is_read(disk: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    os.utime(disk, (1, 1))
    first = diskimage.read_image(disk)
    monkeypatch.setattr(parttable, "partitions", lambda *_: pytest.fail("the disk is read again"))
    assert diskimage.read_image(disk).entry == first.entry
    copy = disk.with_name("copy.raw")
    shutil.copyfile(disk, copy)
    again = diskimage.read_image(copy)
    assert (again.entry, again.disks[0].file) == (first.entry, copy), "known by its content, wherever it lies"


@needs_makefs
@needs_qemu_img
@pytest.mark.parametrize("packed", ["qcow2", "raw.xz", "qcow2.xz"])
def test_packed_disks(disk: Path, packed: str) -> None:
    path = disk.with_name(f"d.{packed}")
    inner = disk
    if packed.startswith("qcow2"):
        inner = disk.with_name("inner.qcow2")
        subprocess.run(["qemu-img", "convert", "-f", "raw", "-O", "qcow2", str(disk), str(inner)], check=True)
    path.write_bytes(lzma.compress(inner.read_bytes(), preset=0) if packed.endswith("xz") else inner.read_bytes())
    image = diskimage.read_image(path)
    assert (image.version, image.root, image.name) == ("14.2", "gpt/rootfs", path.name)
    assert image.disks[0].file.read_bytes() == disk.read_bytes()
    assert image.disks[0].file.stat().st_blocks * 512 < disk.stat().st_size / 2, "holes stay holes"
    assert freebsd_source.from_image(image).inputs["disk"] == f"{path.name} sha256:{file_sha256(path)}"


@needs_makefs
def test_the_kernel_that_the_loader_would_start(tree: Path, tmp_path: Path) -> None:
    (tree / "boot/kernel.old").mkdir()
    old = elf(tmp_path / "old", text=b"FreeBSD 13.5-RELEASE OLD\0").read_bytes()
    (tree / "boot/kernel.old/kernel.gz").write_bytes(gzip.compress(old, mtime=0))
    (tree / "boot/loader.conf.d").mkdir()
    (tree / "boot/loader.conf.d/which.conf").write_text('kernel="kernel.old"\n')
    image = diskimage.read_image(disk_of(tmp_path / "d", ufs_of(tree)))
    assert (image.version, image.data["kernel"]["path"]) == ("13.5", "")
    assert image.kernel is not None
    assert image.kernel.read_bytes() == old


@needs_makefs
@pytest.mark.parametrize(
    ("fstab", "root"), [("", "xbd0p4"), ("/dev/xbd0p4 / ufs rw 1 1\n", "xbd0p4"), ("/dev/ufsid/5f00 / ufs rw 1 1\n", "ufsid/5f00")]
)
def test_the_root_as_fstab_names_it(tmp_path: Path, fstab: str, root: str) -> None:
    assert diskimage.read_image(disk_of(tmp_path / "d", ufs_of(root_tree(tmp_path / "t", fstab=fstab)))).root == root


@needs_makefs
@pytest.mark.parametrize(
    "fstab", ['/dev/gptid/a"];b / ufs rw\n', "/dev/gptid/\x1b[2J / ufs rw\n", f"/dev/gptid/{'a' * 255} / ufs rw\n"]
)
def test_a_root_with_a_name_that_the_kernel_cannot_have(tmp_path: Path, fstab: str) -> None:
    with pytest.raises(UsageError, match=r"the kernel cannot be told the root 'gptid/") as caught:
        diskimage.read_image(disk_of(tmp_path / "d", ufs_of(root_tree(tmp_path / "t", fstab=fstab))))
    assert "--root xbd0p4" in caught.value.hint
    assert caught.value.message.isprintable()


@needs_makefs
def test_a_truncated_ufs(tree: Path, tmp_path: Path) -> None:
    """Without a table nothing else gives the size of the disk."""
    (tree / "etc/fstab").unlink()
    fs = ufs_of(tree)
    whole = fs.stat().st_size
    assert diskimage.read_image(fs).root == "xbd0"
    for size in (whole - (1 << 20), whole // 2):
        os.truncate(fs, size)
        with pytest.raises(UsageError, match=rf"the UFS on xbd0 has \d+ KiB, but the image has only {size >> 10} KiB") as caught:
            diskimage.read_image(fs)
        assert "truncated" in caught.value.hint
    os.truncate(fs, 1 << 20)  # not even the root directory is left
    with pytest.raises(UsageError, match="the UFS on xbd0 has"):
        diskimage.read_image(fs)


@needs_makefs
def test_a_superblock_with_absurd_sizes(tree: Path) -> None:
    fs = ufs_of(tree)
    with fs.open("r+b") as file:
        file.seek(8192 + 48)  # fs_bsize
        file.write(b"\0\0\0\x40")
    with pytest.raises(UsageError, match=r"no FreeBSD on it; it has xbd0 \(UFS with a damaged superblock\)"):
        diskimage.read_image(fs)


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere disks are character devices")
def test_neither_a_file_nor_a_disk(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "pipe", Path("/dev/null")):
        with pytest.raises(UsageError, match=f"^{path}: neither a file nor a disk"):
            diskimage.read_image(path)


@needs_makefs
def test_a_kernel_on_the_disk_that_is_none(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"/boot/kernel/kernel: not an ELF file") as caught:
        diskimage.read_image(ufs_of(root_tree(tmp_path / "t", kernel=b"", fstab="")))
    assert "--kernel FILE" in caught.value.hint


@needs_makefs
def test_tables_other_than_gpt(tree: Path, tmp_path: Path) -> None:
    (tree / "etc/fstab").unlink()
    fs = ufs_of(tree)
    assert diskimage.read_image(fs).root == "xbd0"
    sectors = fs.stat().st_size // SECTOR
    path = tmp_path / "mbr"
    path.write_bytes(
        tables.mbr(63, sectors + 16, code=b"\xeb\xfe").ljust(64 * SECTOR, b"\0")
        + tables.disklabel(sectors + 16, [Part("freebsd-ufs", 16, sectors)]).ljust(15 * SECTOR, b"\0")
        + fs.read_bytes()
    )
    assert (diskimage.read_image(path).root, diskimage.read_image(path).types) == ("xbd0s1a", ("pvh", "hvm"))


@needs_makefs
def test_which_of_two_roots(tree: Path, tmp_path: Path) -> None:
    fs = ufs_of(tree)
    path = disk_of(tmp_path / "d", fs, fs)
    with pytest.raises(UsageError, match=r"two or more roots: xbd0p4 \(freebsd-ufs, ufs1\), xbd0p5 .*\n.*--root xbd0p4"):
        diskimage.read_image(path)
    for wanted in ("xbd0p5", "/dev/gpt/root1", "ufs:/dev/xbd0p5"):
        assert diskimage.read_image(path, wanted).root_device == "xbd0p5"
    with pytest.raises(
        UsageError, match=r"--root xbd0p1 is not a FreeBSD root of this disk \(xbd0p4, gpt/rootfs, xbd0p5, gpt/root1\)"
    ):
        diskimage.read_image(path, "xbd0p1")


@needs_makefs
def test_another_kernel_with_the_disks_root(disk: Path, tmp_path: Path) -> None:
    kernel = elf(tmp_path / "kernel", text=b"FreeBSD 15.1-RELEASE MINE\0")
    given = freebsd_source.from_files(kernel, disk)
    assert (given.label, given.root, given.disks[0].path, given.kernel) == ("freebsd-15.1", "gpt/rootfs", disk, kernel)
    assert freebsd_source.from_files(kernel, disk, root="xbd0p7").root == "xbd0p7", "as it was asked for"
    (tmp_path / "blank").write_bytes(bytes(2 << 20))
    assert freebsd_source.from_files(kernel, tmp_path / "blank").root == "xbd0"
    with pytest.raises(UsageError, match=r"FreeBSD 15\.1 without ZFS, and the root is zfs:zroot/ROOT/default"):
        freebsd_source.from_files(kernel, disk, root="zfs:zroot/ROOT/default")
    assert (
        freebsd_source.from_files(elf(tmp_path / "z", text=ZFS), disk, root="zfs:zroot/ROOT/default").root
        == "zfs:zroot/ROOT/default"
    )


@needs_makefs
def test_an_imported_disk_brings_its_kernel(disk: Path, tree: Path) -> None:
    made = recipes.build(recipe.resolve("mine", {"disk": str(disk)}, {}))
    assert (made.version, made.types, made.root) == ("14.2", ("pvh", "hvm"), "gpt/rootfs")
    assert made.disks[0].file.read_bytes() == disk.read_bytes()
    assert made.kernel is not None
    assert made.kernel.read_bytes() == (tree / "boot/kernel/kernel").read_bytes()


# -- ZFS --------------------------------------------------------------------------------------------------------------


@pytest.fixture
def pool(tmp_path: Path) -> Callable[..., Path]:
    """Creates disks with a pool as in release/tools/vmimage.subr, from the kernel's text and the names of boot environments."""

    def make_pool(text: bytes, *names: str, loader: str = 'zfs_load="YES"\n', code: bytes = b"\xeb\xfe") -> Path:
        top = root_tree(tmp_path / "z", kernel=elf(tmp_path / "zk", text=text).read_bytes(), fstab="", loader=loader)
        options = [
            "poolname=zroot",
            "bootfs=zroot/ROOT/default",
            "rootpath=/",
            "fs=zroot;mountpoint=none",
            "fs=zroot/ROOT;mountpoint=none",
        ]
        options += ["fs=zroot/ROOT/default;mountpoint=/;canmount=noauto"]
        path = tmp_path / "z.zfs"
        words = [word for option in options for word in ("-o", option)]
        makefs.run([FREEBSD, "-t", "zfs", "-s", "96m", *words, str(path), str(top)])
        return disk_of(tmp_path / "zfs.raw", path, kind="freebsd-zfs", code=code)

    return make_pool


@needs_freebsd
@needs_grub
def test_a_pool_as_official_images_have_it(pool: Callable[..., Path]) -> None:
    image = diskimage.read_image(pool(ZFS))
    assert (image.root, image.mountfrom, image.root_device) == ("zroot/ROOT/default", "zfs:zroot/ROOT/default", "xbd0p4")
    assert (image.types, image.zfs) == (("pvh",), True)
    assert freebsd_source.from_image(image).root == "zfs:zroot/ROOT/default"


@needs_freebsd
@needs_grub
def test_zfs_as_a_module_needs_the_loader(pool: Callable[..., Path]) -> None:
    serial = diskimage.read_image(pool(NEW, loader='zfs_load="YES"\nconsole="comconsole"\n'))
    assert serial.types == ("hvm",)
    with pytest.raises(UsageError, match="cannot run as pvh: no PVH: the root is on ZFS, and the kernel has ZFS as a module only"):
        diskimage.check_types(serial, ("pvh",))


@needs_freebsd
@needs_grub
def test_zfs_as_a_module_without_a_console(pool: Callable[..., Path]) -> None:
    with pytest.raises(UsageError, match=r"nothing can start it here: no PVH: .*; no HVM: .*\n.*a kernel with XENHVM and ZFS"):
        diskimage.read_image(pool(NEW))


@pytest.mark.parametrize(
    ("data", "why"),
    [
        (label(state=0), r"the ZFS pool zroot on xbd0p4 was not cleanly exported \(it is active\)"),
        (label(state=2), r"was not cleanly exported \(it is destroyed\)"),
        (label(vdev="mirror"), r"the ZFS pool zroot on xbd0p4 needs more disks \(mirror, 1 vdevs\)"),
    ],
)  # fmt: skip
def test_pools_that_are_not_read(tmp_path: Path, own_store: Path, data: dict[str, object], why: str) -> None:
    path = disk_of(tmp_path / "d", labelled(tmp_path / "v", (0, data), size=2 << 20), kind="freebsd-zfs")
    with pytest.raises(UsageError, match=why):
        diskimage.read_image(path)
    assert not [name for name in left(own_store) if not name.startswith("hashes/")]


@pytest.mark.parametrize("kernel", [ZFS, NEW])
def test_an_unreadable_pool(tmp_path: Path, own_store: Path, kernel: bytes) -> None:
    """The partitions of the official ZFS images without a label: the kernel of --kernel does not start with a guessed root."""
    (tmp_path / "v").write_bytes(bytes(2 << 20))
    path = disk_of(tmp_path / "d", tmp_path / "v", kind="freebsd-zfs")
    given = elf(tmp_path / "kernel", text=kernel)
    why = r"its root is in a ZFS pool on xbd0p4, which has no readable label\n.*--kernel FILE --root zfs:POOL/ROOT/default"
    with pytest.raises(UsageError, match=why):
        diskimage.read_image(path)
    with pytest.raises(UsageError, match=why):
        recipes.build(recipe.resolve("z", {"disk": str(path), "kernel": str(given)}, {}))
    with pytest.raises(UsageError, match=why):
        freebsd_source.from_files(given, path)
    made = recipes.build(recipe.resolve("z", {"disk": str(path), "kernel": str(given), "root": "zfs:tank/ROOT/box"}, {}))
    # Only the loader loads a module, so there is no PVH without ZFS in the kernel.
    assert (made.mountfrom, made.types) == ("zfs:tank/ROOT/box", ("pvh", "hvm") if kernel == ZFS else ("hvm",))


# -- UEFI -------------------------------------------------------------------------------------------------------------


def uefi_disk(path: Path, tree: Path, code: bytes = b"", fat: bytes = b"FAT32   ") -> Path:
    made = disk_of(path, ufs_of(tree), code=code)
    return patched(made, (40 * SECTOR + 82, fat))


@needs_makefs
def test_a_disk_for_uefi_only(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tree = root_tree(
        tmp_path / "t", kernel=elf(tmp_path / "k", notes=False, text=NEW).read_bytes(), loader='console="comconsole"\n'
    )
    image = diskimage.read_image(uefi_disk(tmp_path / "d", tree))
    assert (image.types, image.firmwares) == (("hvm",), ("uefi",))
    diskimage.print_summary(image)
    assert "HVM by UEFI only (--firmware uefi): the disk has no boot code for a BIOS" in capsys.readouterr().err
    both = diskimage.read_image(uefi_disk(tmp_path / "e", tree, code=b"\xeb\xfe"))
    assert both.firmwares == ("bios", "uefi")
    diskimage.print_summary(both)
    assert "UEFI alone" not in capsys.readouterr().err


@needs_makefs
def test_a_disk_for_uefi_only_with_another_kernel(tmp_path: Path) -> None:
    path = uefi_disk(tmp_path / "d", root_tree(tmp_path / "t"))
    plain = elf(tmp_path / "plain", notes=False, text=NEW)
    made = recipes.build(recipe.resolve("u", {"disk": str(path), "kernel": str(plain)}, {}))
    assert (made.types, made.firmwares) == (("hvm",), ("uefi",))
    assert freebsd_source.from_image(made).why_no_bios.endswith("only UEFI can start it: its disk has no boot code for a BIOS")
    neither = uefi_disk(tmp_path / "e", root_tree(tmp_path / "s"), fat=b"")
    with pytest.raises(UsageError, match="or a disk with boot code or an EFI system partition"):
        recipes.build(recipe.resolve("n", {"disk": str(neither), "kernel": str(plain)}, {}))


# -- sectors ----------------------------------------------------------------------------------------------------------


@needs_makefs
def test_a_table_that_no_guest_would_find(tree: Path, tmp_path: Path, own_store: Path) -> None:
    make_ufs(tree, tmp_path / "tree.ufs", size="3m")
    fs = (tmp_path / "tree.ufs").read_bytes()
    path = gpt(tmp_path / "d", unit=4096)
    patched(path, (4096 * SECTOR, fs))
    assert diskimport.guess_root(path) == ("xbd0p1", False)
    said = refused(path, own_store)
    assert "its table is for sectors of 4096 bytes. A file-backed disk has sectors of 512" in said
    assert "the guest would not find xbd0p1 (freebsd-ufs, ufs1)" in said
    assert "if the hosts' storage has sectors of 4096: --root xbd0p1" in said
    image = diskimage.read_image(path, "xbd0p1")
    assert (image.root, image.version) == ("xbd0p1", "14.2")
    kernel = elf(tmp_path / "kernel", text=NEW)
    with pytest.raises(UsageError, match="sectors of 4096 bytes"):
        freebsd_source.from_files(kernel, path)
    assert freebsd_source.from_files(kernel, path, root="xbd0p1").root == "xbd0p1"


# -- disks that cannot be run -----------------------------------------------------------------------------------------


def refused(path: Path, own_store: Path, root: str = "") -> str:
    """The error for a disk. Checks that nothing of it stays in the store."""
    with pytest.raises(UsageError) as caught:
        diskimage.read_image(path, root)
    assert not [name for name in left(own_store) if not name.startswith("hashes/")]
    assert str(path) in caught.value.message, "the message names the file"
    assert caught.value.hint, "and what to do"
    return str(caught.value)


@needs_makefs
def test_no_freebsd(tree: Path, tmp_path: Path, own_store: Path) -> None:
    (tree / "sbin/init").unlink()
    said = refused(disk_of(tmp_path / "d", ufs_of(tree)), own_store)
    assert "no FreeBSD on it; it has xbd0p1 (efi), xbd0p2 (freebsd-boot), xbd0p3 (freebsd-swap), xbd0p4 (freebsd-ufs, ufs1)" in said
    (tmp_path / "ext").write_bytes(bytes(1080) + b"\x53\xef" + bytes((2 << 20) - 1082))
    assert "it has xbd0 (ext2/3/4)" in refused(tmp_path / "ext", own_store)


def test_an_encrypted_root(tmp_path: Path, own_store: Path) -> None:
    fs = tmp_path / "geli"
    fs.write_bytes(os.urandom((2 << 20) - 512) + b"GEOM::ELI".ljust(512, b"\0"))
    assert "xbd0p4 is encrypted (GELI), and no other root is on the disk" in refused(disk_of(tmp_path / "d", fs), own_store)


@needs_makefs
def test_a_journal_that_was_not_replayed(disk: Path, own_store: Path) -> None:
    at = 4096 * SECTOR + 8192
    patched(disk, (at + 209, b"\0"), (at + 211, b"\x80"), (at + 1312, b"\x0a\0\0\0"))
    said = refused(disk, own_store)
    assert "the UFS on xbd0p4 is not clean: it was not unmounted, and its soft updates journal was not replayed" in said
    assert "or skip this check: --kernel FILE --root xbd0p4" in said


@needs_makefs
@pytest.mark.parametrize(
    ("loader", "code", "types", "why"),
    [
        ('console="comconsole"\n', b"\xeb\xfe", ("hvm",), "no PVH: FreeBSD 11.4's kernel /boot/kernel/kernel has no Xen ELF notes"),
        ('console="comconsole"\n', b"", (), "no Xen ELF notes (options XENHVM); no HVM: the disk has neither boot code nor an EFI"),
        ("", b"\xeb\xfe", (), "no HVM: its loader does not use the serial port"),
    ],
)  # fmt: skip
def test_a_kernel_without_pvh(tmp_path: Path, own_store: Path, loader: str, code: bytes, types: tuple[str, ...], why: str) -> None:
    kernel = elf(tmp_path / "k", notes=False, text=b"FreeBSD 11.4-RELEASE GENERIC\0").read_bytes()
    path = disk_of(tmp_path / "d", ufs_of(root_tree(tmp_path / "t", kernel=kernel, loader=loader)), code=code)
    if not types:
        assert why in refused(path, own_store)
        return
    image = diskimage.read_image(path)
    assert image.types == types
    with pytest.raises(UsageError) as caught:
        diskimage.check_types(image, ("pvh", "pv"))
    assert why in caught.value.message
    diskimage.check_types(image, ("hvm", "pvh"))


@needs_makefs
@pytest.mark.parametrize(
    ("kernel", "why"),
    [
        (b"no kernel" * 100, "/boot/kernel/kernel: not an ELF file"),
        (elf, "/boot/kernel/kernel: a kernel for arm64; only amd64 and i386 are supported"),
    ],
)
def test_files_that_are_not_a_kernel(tmp_path: Path, own_store: Path, kernel: object, why: str) -> None:
    data = kernel if isinstance(kernel, bytes) else elf(tmp_path / "arm", machine=183).read_bytes()
    assert why in refused(disk_of(tmp_path / "d", ufs_of(root_tree(tmp_path / "t", kernel=data))), own_store)


@needs_makefs
def test_a_root_without_a_kernel(tree: Path, tmp_path: Path, own_store: Path) -> None:
    (tree / "boot/kernel/kernel").unlink()
    said = refused(disk_of(tmp_path / "d", ufs_of(tree)), own_store)
    assert "the root xbd0p4 (freebsd-ufs, ufs1) has no kernel at /boot/kernel/kernel" in said


@needs_makefs
def test_a_packed_kernel_without_end(tree: Path, tmp_path: Path, own_store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("harness.images.rootfs.LARGEST_KERNEL", 4 << 20)
    (tree / "boot/kernel/kernel").unlink()
    packed = gzip.compress(bytes(64 << 20), mtime=0)
    (tree / "boot/kernel/kernel.gz").write_bytes(packed)
    assert "larger than 4 MiB" in refused(disk_of(tmp_path / "d", ufs_of(tree)), own_store)
    (tree / "boot/kernel/kernel.gz").write_bytes(packed[:-20])
    monkeypatch.setattr("harness.images.rootfs.LARGEST_KERNEL", 256 << 20)
    assert "/boot/kernel/kernel.gz ends too early" in refused(disk_of(tmp_path / "e", ufs_of(tree)), own_store)


@needs_makefs
def test_a_root_by_a_name_that_no_xen_guest_has(tmp_path: Path, own_store: Path) -> None:
    path = disk_of(tmp_path / "d", ufs_of(root_tree(tmp_path / "t", fstab="/dev/vtbd0p4 / ufs rw 1 1\n")))
    said = refused(path, own_store)
    assert "has / on /dev/vtbd0p4, which a Xen guest does not have: there it is xbd0p4, gpt/rootfs" in said
    assert diskimage.read_image(path, "xbd0p4").root == "xbd0p4"


def test_a_truncated_table(tmp_path: Path, own_store: Path) -> None:
    path = disk_of(tmp_path / "d", labelled(tmp_path / "v", size=4 << 20))
    os.truncate(path, 3 << 20)
    assert "no copy of the disk's GPT is good" in refused(path, own_store)


# -- formats ----------------------------------------------------------------------------------------------------------


REAL = [
    ("vpc", "subformat=dynamic", "VHD"), ("vpc", "subformat=fixed", "VHD"), ("vpc", "subformat=fixed,force_size", "VHD"), ("vhdx", "", "VHDX"),
    ("vhdx", "subformat=fixed", "VHDX"), ("vdi", "", "VDI"), ("vdi", "static=on", "VDI"), ("vmdk", "", "VMDK"),
    ("vmdk", "subformat=streamOptimized", "VMDK"), ("vmdk", "subformat=monolithicFlat", "VMDK"),
    ("vmdk", "subformat=twoGbMaxExtentSparse", "VMDK"), ("vmdk", "subformat=monolithicSparse,hwversion=6", "VMDK"), ("qed", "", "QED"),
    ("parallels", "", "Parallels"),
]  # fmt: skip


@needs_makefs
@needs_qemu_img
@pytest.mark.parametrize(("fmt", "options", "name"), REAL)
def test_formats_of_others_are_named_and_then_read(disk: Path, own_store: Path, fmt: str, options: str, name: str) -> None:
    """The command in the hint writes a file that is read like the disk."""
    words = ["-o", options] if options else []
    path = disk.with_name("disk")
    subprocess.run(["qemu-img", "convert", "-f", "raw", "-O", fmt, *words, str(disk), str(path)], check=True)
    said = refused(path, own_store)
    assert f"a {name} file, and only raw and qcow2 disks are supported" in said
    command = said.partition("hint: ")[2].partition(";")[0].split()
    assert command == ["qemu-img", "convert", "-f", fmt, "-O", "qcow2", "disk", "disk.qcow2"]
    subprocess.run(command, cwd=disk.parent, check=True)
    there, here = (diskimage.read_image(item) for item in (disk.with_name("disk.qcow2"), disk))
    assert (there.root, there.types, there.data["files"]) == (here.root, here.types, here.data["files"])


PACKERS = [("gzip", "gunzip", ".gz"), ("zstd", "unzstd", ".zst"), ("bzip2", "bunzip2", ".bz2"), ("lzma", "unlzma", ".lzma"), ("lz4", "unlz4", ".lz4"), ("lzop", "lzop -d", ".lzo")]  # fmt: skip


@needs_makefs
@pytest.mark.parametrize(("packer", "unpacker", "ending"), PACKERS)
def test_packed_files_are_named_and_then_read(disk: Path, own_store: Path, packer: str, unpacker: str, ending: str) -> None:
    """The content determines the format: the file names have unusual endings."""
    if not shutil.which(packer):
        pytest.skip(f"needs {packer}")
    path = disk.with_name("disk.img")
    with disk.open("rb") as given, path.open("wb") as out:
        subprocess.run([packer, "-c"], stdin=given, stdout=out, check=True)
    said = refused(path, own_store)
    assert f" {packer} file, not a disk image" in said
    assert f"unpack it first: {unpacker} disk.img" in said
    path.rename(f"{path}{ending}")
    with path.open("wb") as out:
        subprocess.run([*unpacker.split(), "-c", f"{path}{ending}"], stdout=out, check=True)
    assert diskimage.read_image(path).root == diskimage.read_image(disk).root


@needs_makefs
@needs_qemu_img
@pytest.mark.parametrize("options", ["compat=0.10", "compat=1.1", "compat=1.1,cluster_size=4096", "compat=1.1,extended_l2=on", "compression_type=zstd"])  # fmt: skip
@pytest.mark.parametrize("packed", [False, True])
def test_kinds_of_qcow2(disk: Path, options: str, packed: bool) -> None:
    path = disk.with_name("d.raw")
    words = ["-c"] if packed else []
    subprocess.run(["qemu-img", "convert", *words, "-f", "raw", "-O", "qcow2", "-o", options, str(disk), str(path)], check=True)
    assert diskformat.identify(path) == "qcow2"
    assert diskimage.read_image(path).data["files"] == diskimage.read_image(disk).data["files"]


SKIPPABLE = b"\x53\x2a\x4d\x18\4\0\0\0size\x28\xb5\x2f\xfd"
DESCRIPTOR = b'# Disk DescriptorFile\nversion=1\nCID=1\ncreateType="monolithicFlat"\nRW 2048 FLAT "d-flat.vmdk" 0\n'


@pytest.mark.parametrize(
    ("data", "why"),
    [
        (gzip.compress(b"x" * 99, mtime=0), "a gzip file"), (b"BZh91AY", "a bzip2 file"), (b"\x28\xb5\x2f\xfd", "a zstd file"), (b"PK\x03\x04", "a zip file"),
        (SKIPPABLE, "a zstd or lz4 file"), (b"\x04\x22\x4d\x18\x64", "an lz4 file"), (lzma.compress(b"x", format=lzma.FORMAT_ALONE), "an lzma file"),
        (bytes(257) + b"ustar", "a tar file"), (b"hello", "a file of 5 bytes is not a disk image"), (bytes((1 << 20) + 100), "a file of 1048676 bytes is not a disk image"),
        (b"\x7fELF" + bytes(2 << 20), "an ELF file, not a disk image"),
        (DESCRIPTOR, "a VMDK file"), (b"\r\n# made by hand\r\n\r\n" + DESCRIPTOR.lower(), "a VMDK file"), (DESCRIPTOR[22:], "a VMDK file"),
        (b"\xbe\xba\xfe\xca" + bytes(2 << 20), "a VMDK file"), (b"COWD" + bytes(2 << 20), "a VMDK file"),
        (bytes(2 << 20) + b"conectix".ljust(511, b"\0"), "a VHD file"), (bytes(2 << 20) + b"conectix".ljust(512, b"\0"), "a VHD file"),
        (b"#\r\n" * 170 + b"x", "a file of 511 bytes is not a disk image"),
        (bytes(2 << 20) + b"koly".ljust(512, b"\0"), "a DMG file"), (b"QFI\xfb\0\0\0\1" + bytes(200), "a qcow file of version 1"),
    ],
)  # fmt: skip
def test_files_that_are_no_disks(tmp_path: Path, own_store: Path, data: bytes, why: str) -> None:
    (tmp_path / "f").write_bytes(data)
    assert why in refused(tmp_path / "f", own_store)
    (tmp_path / "f.xz").write_bytes(lzma.compress(data))
    said = refused(tmp_path / "f.xz", own_store)
    assert why in said
    assert "f.xz" in said


@needs_qemu_img
def test_qcow2_files_that_name_others(tmp_path: Path, own_store: Path) -> None:
    (tmp_path / "secret").write_bytes(b"s" * (2 << 20))
    made = tmp_path / "over.qcow2"
    subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", "-F", "raw", "-b", str(tmp_path / "secret"), str(made)], check=True)
    said = refused(made, own_store)
    assert f"it holds only the differences from its backing file '{tmp_path / 'secret'}'" in said
    (tmp_path / "over.qcow2.xz").write_bytes(lzma.compress(made.read_bytes()))
    assert "its backing file" in refused(tmp_path / "over.qcow2.xz", own_store)
    outside = tmp_path / "outside.qcow2"
    options = f"data_file={tmp_path / 'data'},data_file_raw=on"
    subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", "-o", options, str(outside), "4M"], check=True)
    assert "its data is in another file" in refused(outside, own_store)


@needs_qemu_img
@needs_makefs
@pytest.mark.parametrize("compressed", [False, True])
def test_truncated_files(disk: Path, own_store: Path, compressed: bool) -> None:
    made = disk.with_name("d.qcow2")
    subprocess.run(
        ["qemu-img", "convert", *(["-c"] if compressed else []), "-f", "raw", "-O", "qcow2", str(disk), str(made)], check=True
    )
    whole = made.read_bytes()
    for size in (len(whole) // 2, len(whole) - (128 << 10), 40):
        made.write_bytes(whole[:size])
        assert "truncated" in refused(made, own_store), size
    packed = lzma.compress(os.urandom(2 << 20), preset=0)
    for size in (len(packed) - 10, len(packed) // 2, 20):
        disk.with_name("d.xz").write_bytes(packed[:size])
        assert "the xz file ends too early" in refused(disk.with_name("d.xz"), own_store), size
    damaged = bytearray(packed)
    damaged[1 << 20] ^= 0xFF
    disk.with_name("d.xz").write_bytes(damaged)
    assert "a damaged xz file" in refused(disk.with_name("d.xz"), own_store)


def test_an_xz_bomb_stops_at_the_free_space(tmp_path: Path, own_store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(diskformat, "_room", lambda where: 8 << 20)
    bomb = tmp_path / "bomb.xz"
    bomb.write_bytes(lzma.compress(b"x" * (64 << 20), preset=0))
    with pytest.raises(InfrastructureError, match=r"bomb\.xz: the unpacked disk needs more than the 8 MiB"):
        diskimage.read_image(bomb)
    assert not [name for name in left(own_store) if not name.startswith("hashes/")]
    # Zeros take no space on disk, but their number has a limit, too.
    bomb.write_bytes(lzma.compress(bytes(64 << 20), preset=0))
    monkeypatch.setattr(diskformat, "_LARGEST", 32 << 20)
    with pytest.raises(HarnessError, match="the unpacked disk needs more than"):
        diskimage.read_image(bomb)


@needs_qemu_img
def test_a_qcow2_bomb(tmp_path: Path, own_store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "raw").write_bytes(b"x" * (96 << 20))
    bomb = tmp_path / "bomb.qcow2"
    subprocess.run(["qemu-img", "convert", "-c", "-f", "raw", "-O", "qcow2", str(tmp_path / "raw"), str(bomb)], check=True)
    assert bomb.stat().st_size < 4 << 20
    monkeypatch.setattr(diskformat, "_room", lambda where: 8 << 20)
    with pytest.raises(InfrastructureError, match=r"bomb\.qcow2: the unpacked disk needs more than the 8 MiB"):
        diskimage.read_image(bomb)
    assert not [name for name in left(own_store) if not name.startswith("hashes/")]


def test_xz_files_of_many_streams(tmp_path: Path) -> None:
    """As written by pixz and `cat a.xz b.xz`, with padding between."""
    one, two = os.urandom(1 << 20), bytes(3 << 20) + os.urandom(1 << 20)
    (tmp_path / "d.xz").write_bytes(lzma.compress(one) + bytes(8) + lzma.compress(two) + bytes(4))
    assert diskformat.raw(tmp_path / "d.xz").path.read_bytes() == one + two


def test_a_hash_is_taken_again_when_the_file_changes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("harness.digest._WORTH_KEEPING", 1)
    path = tmp_path / "f"
    for text in ("one", "two", "ten"):
        path.write_text(text)
        assert known_sha256(path) == file_sha256(path), "changed a moment ago: never from memory"
    monkeypatch.setattr("harness.digest._SETTLED", -1.0)
    kept = known_sha256(path)
    os.truncate(path, 2)
    other = known_sha256(path)
    monkeypatch.setattr("hashlib.file_digest", lambda *_: pytest.fail("read again"))
    assert known_sha256(path) == other != kept
    assert len(list((paths.store() / "hashes").iterdir())) == 2


# -- at the command line ----------------------------------------------------------------------------------------------


@needs_makefs
def test_list_takes_a_disk(disk: Path, tmp_path: Path) -> None:
    fxh = [sys.executable, "-m", "harness.cli"]
    done = subprocess.run([*fxh, "list", "boot", "--disk", str(disk)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "boot         freebsd-pvh-xen-" in done.stdout
    assert "boot         freebsd-hvm-xen-" in done.stdout
    assert "FreeBSD.raw: FreeBSD 14.2 amd64, root gpt/rootfs, pvh/hvm" in done.stderr
    (tmp_path / "blank").write_bytes(bytes(2 << 20))
    for words in (["list"], ["boot"], ["run", "boot"]):
        done = subprocess.run([*fxh, *words, "--disk", str(tmp_path / "blank")], capture_output=True, text=True, check=False)
        assert (done.returncode, done.stdout) == (2, ""), words
        assert done.stderr.startswith(
            f"fxh: {tmp_path / 'blank'}: no FreeBSD on it; it has xbd0 (nothing known)\n     hint: use an image"
        ), words


# -- against the running guest ----------------------------------------------------------------------------------------


def test_files_against_the_guests_hashes() -> None:
    wanted = {"/etc/fstab": "a" * 64, "/bin/sh": "b" * 64, "/boot/it's.conf": "c" * 64}
    asked = []

    def run(command: str) -> str:
        asked.append(command)
        return f"{'a' * 64} /etc/fstab\r\n{'0' * 64} /bin/sh\r\nsha256: oops\n"

    assert filehash.differing(run, wanted) == [
        f"/bin/sh: sha256 {'0' * 64} in the guest, sha256 {'b' * 64} on the disk image",
        f"/boot/it's.conf: no such file in the guest, sha256 {'c' * 64} on the disk image",
    ]
    assert asked == ["""sha256 -r /etc/fstab /bin/sh '/boot/it'"'"'s.conf' 2>/dev/null; true"""]
    assert filehash.differing(run, {"/etc/fstab": "a" * 64}) == []
