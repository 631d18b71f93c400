# SPDX-License-Identifier: BSD-2-Clause
"""Layouts with an EFI system partition, with ZFS, and with the partitions of the official VM images."""

from __future__ import annotations

import os
import re
import shutil
import struct
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest

from harness import store
from harness.digest import file_sha256
from harness.errors import BuildError, UsageError
from harness.guests import rootfs
from harness.guests.os import freebsd_source
from harness.guests.os.freebsd import FreeBSD
from harness.images import (
    bootenv,
    destdir,
    disks,
    entries,
    image,
    kernelfile,
    layout,
    loader_conf_slot,
    makefs,
    metalog,
    overlay_files,
    recipe,
    src_conf,
    tables,
)
from harness.images.assemble import Parts, assemble, fit, idle_scripts, tree_of
from harness.images.disks import BootCode
from harness.images.inputs import content_hash
from harness.images.layout import FileSystem, Vdev
from harness.images.makefs import Makefs
from tests.unit.test_image_parts import elf
from tests.unit.test_image_store import world  # noqa: F401

ZFS_KERNEL = b"FreeBSD 15.1-RELEASE XENZFS\0ZFS storage pool version: features support (\0"
# A FreeBSD makefs from the build of a world; read from the environment before the tests set their own.
FREEBSD_MAKEFS = os.environ.get("FXH_MAKEFS", "")
needs_freebsd_makefs = pytest.mark.skipif(not FREEBSD_MAKEFS, reason="FXH_MAKEFS names no makefs of FreeBSD's")
needs_fat_tools = pytest.mark.skipif(
    not all(shutil.which(name, path=f"{os.environ['PATH']}:/usr/sbin") for name in ("mkfs.fat", "mcopy", "mdir", "fsck.fat")),
    reason="needs dosfstools and mtools",
)

# Does what the builder needs of makefs: an image of the size of -s, and a superblock. It contains `poolname`, so it counts as one with ZFS.
FAKE = """#!/usr/bin/env python3
# poolname
import sys
from pathlib import Path
words = sys.argv[1:]
kind = words[words.index("-t") + 1]
target = Path(words[-2])
with target.open("wb") as file:
    file.truncate(int(words[words.index("-s") + 1]))
    if kind == "ffs":
        groups = [(16, 64), (20, 72), (44, 1), (184, 128), (188, 64), (1080, 64)]
        for at, value in (*groups, (48, 32768), (52, 4096), (56, 8), (120, 128), (1000, 65536), (1372, 0x19540119)):
            file.seek(65536 + at)
            file.write(value.to_bytes(4, "little"))
        for line in Path(words[-1]).read_text().splitlines():
            if line.startswith("./boot/loader.conf.local "):
                file.seek(1 << 20)
                file.write(Path(line.rpartition("contents=")[2]).read_bytes())
with open(LOG, "a") as log:
    log.write(" ".join(words) + "\\n")
"""


@pytest.fixture(autouse=True)
def fresh(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("FXH_STORE", str(tmp_path / "store"))
    monkeypatch.delenv("FXH_MAKEFS", raising=False)
    return tmp_path


@pytest.fixture
def fake(fresh: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A makefs that writes its command lines to the returned file."""
    log, path = fresh / "makefs.log", fresh / "makefs"
    path.write_text(FAKE.replace("LOG", repr(str(log))))
    path.chmod(0o755)
    monkeypatch.setenv("FXH_MAKEFS", str(path))
    return log


@pytest.fixture
def top(world: Path) -> Path:  # noqa: F811
    """A DESTDIR with all boot code."""
    lines = []
    for name in ("loader.efi", "gptzfsboot"):
        (world / "boot" / name).write_bytes(name.encode() * 5000)
        lines.append(f"./boot/{name} type=file uname=root gname=wheel mode=0444\n")
    with (world / "METALOG").open("a") as file:
        file.writelines(lines)
    return world


def put_together(top: Path, kernel: Path, name: str, size: int = 0) -> image.Image:
    return assemble(Parts(destdir.world(top), kernelfile.read(kernel), layout.load(name, size=size), ()), f"test-{name}")


# -- properties of a layout -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "root", "device", "mountfrom", "firmwares"),
    [
        ("ufs1", "xbd0", "xbd0", "ufs:/dev/xbd0", ()),
        ("mbr", "xbd0s1a", "xbd0s1a", "ufs:/dev/xbd0s1a", ("bios",)),
        ("gpt", "xbd0p2", "xbd0p2", "ufs:/dev/xbd0p2", ("bios",)),
        ("uefi", "xbd0p3", "xbd0p3", "ufs:/dev/xbd0p3", ("bios", "uefi")),
        ("zfs", "zroot/ROOT/default", "xbd0p3", "zfs:zroot/ROOT/default", ("bios", "uefi")),
        ("vmimage", "xbd0p4", "xbd0p4", "ufs:/dev/gpt/rootfs", ("bios", "uefi")),
        ("vmimage-zfs", "zroot/ROOT/default", "xbd0p4", "zfs:zroot/ROOT/default", ("bios", "uefi")),
    ],
)
def test_root_and_firmwares(name: str, root: str, device: str, mountfrom: str, firmwares: tuple[str, ...]) -> None:
    found = layout.load(name)
    assert (found.root, found.root_device, found.mountfrom, found.firmwares) == (root, device, mountfrom, firmwares)
    assert overlay_files.menu_variables(found) == {"vfs.root.mountfrom": mountfrom}


def test_fstab_of_the_official_images() -> None:
    assert overlay_files.fstab(layout.load("vmimage")).splitlines()[1:] == [
        "/dev/gpt/efiesp\t/boot/efi\tmsdosfs\trw\t2\t2",
        "/dev/gpt/swapfs\tnone\tswap\tsw\t0\t0",
        "/dev/gpt/rootfs\t/\tufs\trw\t1\t1",
    ]
    assert [line.split("\t")[1] for line in overlay_files.fstab(layout.load("vmimage-zfs")).splitlines()[1:]] == [
        "/boot/efi",
        "none",
    ]
    # An ESP has its label even if no other file system has: without PV disks its device has another name.
    assert overlay_files.fstab(layout.load("uefi")).splitlines()[1:] == [
        "/dev/gpt/efiesp\t/boot/efi\tmsdosfs\trw\t2\t2",
        "/dev/xbd0p3\t/\tufs\trw\t1\t1",
        "/dev/xbd0p4\tnone\tswap\tsw\t0\t0",
    ]


def test_datasets_are_those_of_vmimage_subr() -> None:
    (root,) = (fs for _, _, fs in layout.load("vmimage-zfs").parts if fs.mount == "/")
    assert {row.partition(";")[0] for row in root.datasets} == {
        "ROOT", "ROOT/default", "home", "tmp", "usr", "usr/ports", "usr/src", "usr/obj", "var", "var/audit", "var/crash", "var/log",
        "var/mail", "var/tmp",
    }  # fmt: skip


def test_a_zfs_layout_has_its_kernel_variables_in_the_pool() -> None:
    text = (Path(__file__).parents[2] / "images/freebsd/loader.conf").read_text()
    variables = overlay_files.kernel_variables(text)
    assert variables == {"debug.trace_on_panic": "1", "kern.panic_reboot_wait_time": "3"}
    assert overlay_files.loader_conf(text, layout.load("uefi"), False) == text

    on_zfs = overlay_files.loader_conf(text, layout.load("zfs"), False)

    assert not any(name in on_zfs for name in variables)
    assert 'boot_serial="YES"' in on_zfs
    assert "zfs_load" not in on_zfs
    assert 'zfs_load="YES"\n' in overlay_files.loader_conf(text, layout.load("zfs"), True)


def test_boot_programs_for_a_bios_do_not_wait_for_a_key() -> None:
    files = {name: dict(overlay_files.for_layout(layout.load(name), "").files) for name in ("vmimage", "uefi", "ufs1")}
    assert files["vmimage"]["./boot.config"] == b"-n\n"
    assert "bios" not in layout.load("ufs1").firmwares
    assert "./boot.config" not in files["ufs1"]


def test_zfs_is_enabled_only_where_it_is_used() -> None:
    files = {name: dict(overlay_files.for_layout(layout.load(name), "").files) for name in ("zfs", "uefi")}
    assert b'zfs_enable="YES"\n' in files["zfs"]["./etc/rc.conf"]
    assert b"zfs_enable" not in files["uefi"]["./etc/rc.conf"]
    assert loader_conf_slot.PATH in files["uefi"]
    assert loader_conf_slot.PATH not in files["zfs"]


def test_a_zfs_layout_wants_a_kernel_with_zfs() -> None:
    assert recipe.resolve("x", {"src": "/usr/src", "layout": "zfs"}, {}).kernconf == "XENZFS"
    assert dict(recipe.resolve("x", {"src": "/usr/src", "layout": "vmimage-zfs"}, {}).origins)["kernconf"] == "layout vmimage-zfs"
    assert recipe.resolve("x", {"src": "/usr/src", "layout": "zfs", "kernconf": "MINE"}, {}).kernconf == "MINE"
    assert recipe.resolve("x", {"src": "/usr/src", "layout": "vmimage"}, {}).kernconf == "XENA"


# -- partitions -------------------------------------------------------------------------------------------------------


def test_packed_partitions_follow_each_other_from_the_first_usable_sector() -> None:
    (disk,) = layout.load("vmimage").vdevs
    parts, sectors = disks.place(disk, [100, 200, 300, 400])
    assert [(part.type, part.name, part.start, part.size) for part in parts] == [
        ("freebsd-boot", "bootfs", 34, 100), ("efi", "efiesp", 134, 200), ("freebsd-swap", "swapfs", 334, 300),
        ("freebsd-ufs", "rootfs", 634, 400),
    ]  # fmt: skip
    assert sectors == 1034 + tables.GPT_TAIL


def test_other_partitions_start_at_whole_mib() -> None:
    (disk,) = layout.load("zfs").vdevs
    parts, sectors = disks.place(disk, [2048 * 33, 250, 4096, 2048])
    assert [part.start % 2048 for part in parts] == [0, 0, 0, 0]
    assert [part.type for part in parts] == ["efi", "freebsd-boot", "freebsd-zfs", "freebsd-swap"]
    assert parts[1].start + 250 <= parts[2].start
    assert sectors - tables.GPT_TAIL >= parts[-1].start + parts[-1].size


def test_the_start_of_a_partition_is_read_from_the_table() -> None:
    parts = [tables.Part("efi", 40, 8, "a"), tables.Part("freebsd-zfs", 2048, 8, "b"), tables.Part("freebsd-zfs", 4096, 8, "c")]
    head, _ = tables.gpt(8192, parts, seed="x")
    assert (tables.gpt_start(head, "freebsd-zfs"), tables.gpt_start(head, "efi"), tables.gpt_start(head, "freebsd-ufs")) == (
        2048,
        40,
        -1,
    )
    assert tables.gpt_start(head[:1000], "efi") == -1


def test_boot_code_larger_than_pmbr_reads(tmp_path: Path) -> None:
    for name in ("pmbr", "gptboot"):
        (tmp_path / name).write_bytes(b"\xeb\xfe" * 300_000)
    disk = Vdev("xvda", (FileSystem("none", "boot", 0), FileSystem("none", "swap", 1)), "gpt")
    with pytest.raises(BuildError, match="gptboot has 600000 bytes"):
        disks.write_disk(disk, [tmp_path / "gptboot", None], BootCode(tmp_path), "x", tmp_path / "disk")


# -- the boot environment ---------------------------------------------------------------------------------------------


def nvlist(data: bytes) -> dict[str, object]:
    """Decode an nvlist in XDR by the rules of nvpair(9): version, flags, pairs until one of size 0."""
    assert struct.unpack_from(">II", data) == (0, 1)
    found: dict[str, object] = {}
    at = 8
    while (size := struct.unpack_from(">I", data, at)[0]) > 0:
        length = struct.unpack_from(">I", data, at + 8)[0]
        name = data[at + 12 : at + 12 + length].decode()
        value = at + 12 + (length + 3) // 4 * 4
        kind, count = struct.unpack_from(">II", data, value)
        assert count == 1
        if kind == 8:
            found[name] = struct.unpack_from(">Q", data, value + 8)[0]
        elif kind == 9:
            text = struct.unpack_from(">I", data, value + 8)[0]
            found[name] = data[value + 12 : value + 12 + text].decode()
        else:
            assert kind == 19
            found[name] = nvlist(data[value + 8 : at + size])
        at += size
    return found


def test_boot_environment() -> None:
    block = bootenv.block({"vfs.root.mountfrom": "zfs:zroot/ROOT/default", "kern.hz": "100"})
    assert len(block) == bootenv.SIZE
    assert struct.unpack_from(">Q", block) == (1,)
    assert block[8:12] == b"\1\1\0\0"
    assert nvlist(block[12:]) == {
        "version": 1, "freebsd:nvstore": {"vfs.root.mountfrom": "zfs:zroot/ROOT/default", "kern.hz": "100"},
    }  # fmt: skip


def test_boot_environment_as_the_loader_encodes_it() -> None:
    """The encoding of stand/libsa/zfs/nvlist.c (15.1) for the same variable, and the size of each pair in memory."""
    block = bootenv.block({"kern.hz": "100"})
    nvstore = (
        "00000024 00000020 00000007 6b65726e2e687a00 00000009 00000001 00000003 31303000"
        "00000000 00000000"
    )  # fmt: skip
    assert bytes.fromhex(nvstore.replace(" ", "")) in block
    assert bytes.fromhex("00000024000000200000000776657273696f6e0000000008000000010000000000000001") in block


def test_boot_environment_has_a_checksum() -> None:
    block = bootenv.block({"kern.hz": "100"})
    assert bootenv.is_block(block + b"more")
    assert not bootenv.is_block(block[:-1])
    assert not bootenv.is_block(block.replace(b"100", b"200"))
    # The empty block of `makefs -t zfs` (15.1) at the first label.
    empty = bytes.fromhex("117a0cb17ada10023f2a6e7f808ff497fcceaa58169f90af8bb46dff57ead1cbab5f460ddb92c66e")
    assert bootenv.seal(bytes(bootenv.SIZE - 40))[-40:] == empty


def test_boot_environment_has_a_limit() -> None:
    with pytest.raises(UsageError, match="boot environment of a ZFS pool holds 8144"):
        bootenv.block({"a": "x" * 8144})


def test_the_content_identifies_the_kind_of_slot(tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.write_bytes(bytes(4096) + bootenv.block({}) + loader_conf_slot.text({}) + bytes(8192))
    assert loader_conf_slot.content(disk, 4096, {"a": "1"}) == bootenv.block({"a": "1"})
    assert loader_conf_slot.content(disk, 4096 + bootenv.SIZE, {"a": "1"}) == loader_conf_slot.text({"a": "1"})
    with pytest.raises(BuildError, match="no place for kernel variables at byte 0"):
        loader_conf_slot.content(disk, 0, {"a": "1"})
    copy = loader_conf_slot.write_copy(disk, 4096, {"a": "1"}, tmp_path / "copy")
    assert copy.read_bytes()[4096:][: bootenv.SIZE] == bootenv.block({"a": "1"})


def test_the_slot_of_a_pool_is_found_by_the_table(tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    first, _ = tables.gpt(8192, [tables.Part("efi", 40, 8), tables.Part("freebsd-zfs", 2048, 4096)], seed="x")
    with disk.open("wb") as file:
        file.truncate(8192 * 512)
        file.write(first)
    assert loader_conf_slot.locate_pool(disk) == -1
    with disk.open("r+b") as file:
        file.seek(2048 * 512 + bootenv.OFFSET)
        file.write(bootenv.block({}))
    assert loader_conf_slot.locate_pool(disk) == 2048 * 512 + 8192
    disk.write_bytes(bytes(1000))
    assert loader_conf_slot.locate_pool(disk) == -1


# -- file systems -----------------------------------------------------------------------------------------------------


ESP = FileSystem("/boot/efi", "efi", 33)


def esp(tool: Makefs | None, directory: Path, name: str, seed: str = "x") -> Path:
    loader = directory / "loader.efi"
    loader.write_bytes(b"MZ" * 300_000)
    makefs.fat(tool, ESP, {"EFI/BOOT/BOOTX64.EFI": loader}, directory / name, seed)
    return directory / name


def check_fat(path: Path) -> None:
    environment = {**os.environ, "PATH": f"{os.environ['PATH']}:/usr/sbin", "MTOOLSRC": "/dev/null"}
    checked = subprocess.run(["fsck.fat", "-n", str(path)], capture_output=True, text=True, env=environment, check=False)
    assert checked.returncode == 0, checked.stdout
    argv = ["mcopy", "-i", str(path), "::/EFI/BOOT/BOOTX64.EFI", "-"]
    copied = subprocess.run(argv, capture_output=True, env=environment, check=True).stdout
    assert copied == b"MZ" * 300_000
    data = path.read_bytes()[:512]
    # sectors per cluster; the type; the label; the signature.
    assert (data[13], data[82:90], data[71:82], data[510:]) == (1, b"FAT32   ", b"EFISYS     ", b"\x55\xaa")


@needs_fat_tools
def test_esp_by_debians_tools(tmp_path: Path) -> None:
    made = esp(None, tmp_path, "a")
    check_fat(made)
    assert file_sha256(esp(None, tmp_path, "b")) == file_sha256(made)
    assert file_sha256(esp(None, tmp_path, "c", "another seed")) != file_sha256(made)


@needs_freebsd_makefs
@needs_fat_tools
def test_esp_by_freebsds_makefs(tmp_path: Path) -> None:
    tool = Makefs(Path(FREEBSD_MAKEFS), True, "test")
    made = esp(tool, tmp_path, "a")
    check_fat(made)
    assert file_sha256(esp(tool, tmp_path, "b")) == file_sha256(made)


def test_esp_without_a_tool_names_the_packages(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(makefs, "_path", lambda: "/nowhere")
    with pytest.raises(BuildError, match=r"mcopy and mkfs\.fat and mmd") as caught:
        makefs.check(None, ESP)
    assert "apt-get install dosfstools mtools" in caught.value.hint


@pytest.mark.parametrize(
    ("tool", "words"),
    [
        (None, "this machine has none"),
        (("freebsd", b"-t ffs"), "of an older FreeBSD"),
        (("netbsd", b"poolname"), "NetBSD's"),
    ],
)
def test_zfs_needs_a_makefs_of_14(tmp_path: Path, tool: tuple[str, bytes] | None, words: str) -> None:
    given = None
    if tool:
        (tmp_path / "makefs").write_bytes(tool[1])
        given = Makefs(tmp_path / "makefs", tool[0] == "freebsd", "it")
    with pytest.raises(BuildError, match=f"14.0 or later, and .*{words}"):
        makefs.check(given, FileSystem("/", "zfs", 1024, pool="zroot", bootfs="ROOT/default"))


def test_mount_points_of_datasets() -> None:
    (root,) = (fs for _, _, fs in layout.load("vmimage-zfs").parts if fs.mount == "/")
    assert makefs.mountpoints(root.datasets) == (
        "/", "/home", "/tmp", "/usr", "/usr/ports", "/usr/src", "/usr/obj", "/var", "/var/audit", "/var/crash", "/var/log",
        "/var/mail", "/var/tmp",
    )  # fmt: skip


def test_room_in_a_pool(tmp_path: Path) -> None:
    tree: metalog.Tree = {}
    for name, size in {"empty": 0, "small": 1, "five": 5000, "block": 128 << 10, "two": (128 << 10) + 1}.items():
        (tmp_path / name).write_bytes(bytes(size))
        metalog.add_file(tree, f"./{name}", tmp_path / name)
    assert makefs.zfs_bytes(tree) == 5 * 512 + 4096 + 8192 + (128 << 10) + 3 * (128 << 10)


@needs_freebsd_makefs
def test_a_pool_by_freebsds_makefs(top: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FXH_MAKEFS", FREEBSD_MAKEFS)
    kernel = elf(tmp_path / "kernel", text=ZFS_KERNEL)
    made = put_together(top, kernel, "vmimage-zfs")
    file = made.disks[0].file
    with file.open("rb") as disk:
        disk.seek(made.disks[0].slot)
        data = disk.read(bootenv.SIZE)
    assert data == bootenv.block({"debug.trace_on_panic": "1", "kern.panic_reboot_wait_time": "3"})
    digest = content_hash(file)
    if shutil.which("grub-fstest"):
        argv = ["grub-fstest", str(file), "cat", "(loop0,gpt4)/ROOT/default@/boot/kernel/kernel"]
        assert subprocess.run(argv, capture_output=True, check=True).stdout == kernel.read_bytes()
    store.remove(made.entry.directory)
    assert content_hash(put_together(top, kernel, "vmimage-zfs").disks[0].file) == digest


# -- images -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "types"),
    [
        ("gpt", ["freebsd-boot", "freebsd-ufs", "freebsd-swap"]),
        ("uefi", ["efi", "freebsd-boot", "freebsd-ufs", "freebsd-swap"]),
        ("zfs", ["efi", "freebsd-boot", "freebsd-zfs", "freebsd-swap"]),
        ("vmimage", ["freebsd-boot", "efi", "freebsd-swap", "freebsd-ufs"]),
        ("vmimage-zfs", ["freebsd-boot", "efi", "freebsd-swap", "freebsd-zfs"]),
    ],
)
def test_an_image_of_each_layout(top: Path, tmp_path: Path, fake: Path, name: str, types: list[str]) -> None:
    made = put_together(top, elf(tmp_path / "kernel", text=ZFS_KERNEL), name)

    planned = layout.load(name)
    assert (made.root, made.mountfrom, made.root_device) == (planned.root, planned.mountfrom, planned.root_device)
    assert (made.types, made.firmwares) == (("pvh", "hvm"), planned.firmwares)
    (disk,) = made.disks
    with disk.file.open("rb") as file:
        head = file.read(512 * tables.GPT_FIRST)
    starts = [tables.gpt_start(head, kind) for kind in types]
    assert starts == sorted(starts)
    assert starts[0] > 0
    assert head[:446] == b"\xeb\xfe" * 223
    code = "gptzfsboot" if planned.zfs else "gptboot"
    with disk.file.open("rb") as file:
        file.seek(tables.gpt_start(head, "freebsd-boot") * 512)
        assert file.read(1000) == (top / "boot" / code).read_bytes()[:1000]
    changed = loader_conf_slot.write_copy(disk.file, disk.slot, {"kern.hz": "100"}, tmp_path / "changed")
    with changed.open("rb") as file:
        file.seek(disk.slot)
        assert b"kern.hz" in file.read(bootenv.SIZE)
    commands = fake.read_text()
    assert ("-t zfs" in commands, "-t msdos" in commands) == (planned.zfs, planned.uefi)
    assert ("softupdates=1" in commands, "label=rootfs" in commands) == (name == "vmimage",) * 2
    if planned.zfs:
        assert "poolname=zroot" in commands
        assert "bootfs=zroot/ROOT/default -o rootpath=/ -o fs=zroot;mountpoint=none -o fs=zroot/ROOT;mountpoint=none" in commands


def test_a_world_without_loader_efi(top: Path, tmp_path: Path, fake: Path) -> None:
    (top / "boot/loader.efi").unlink()
    text = (top / "METALOG").read_text()
    (top / "METALOG").write_text("".join(line for line in text.splitlines(True) if "loader.efi" not in line))
    with pytest.raises(BuildError, match=r"no /boot/loader\.efi: UEFI cannot boot it") as caught:
        put_together(top, elf(tmp_path / "kernel"), "uefi")
    assert "WITH_EFI" in caught.value.hint
    assert not fake.exists()
    assert put_together(top, elf(tmp_path / "kernel"), "gpt").firmwares == ("bios",)


def test_a_small_world_has_no_boot_code_for_zfs(top: Path, tmp_path: Path, fake: Path) -> None:
    (top / "boot/gptzfsboot").unlink()
    text = (top / "METALOG").read_text()
    (top / "METALOG").write_text("".join(line for line in text.splitlines(True) if "gptzfsboot" not in line))
    with pytest.raises(BuildError, match="no /boot/gptzfsboot: HVM cannot boot it") as caught:
        put_together(top, elf(tmp_path / "kernel", text=ZFS_KERNEL), "zfs")
    assert "--world zfs" in caught.value.hint
    assert not fake.exists()


def test_a_zfs_layout_refuses_a_kernel_without_zfs(top: Path, tmp_path: Path, fake: Path) -> None:
    with pytest.raises(UsageError, match=r"neither the kernel nor the world has ZFS") as caught:
        put_together(top, elf(tmp_path / "kernel"), "zfs")
    assert "--kernconf XENZFS" in caught.value.hint
    assert not fake.exists()


def test_a_kernel_with_a_zfs_module_boots_by_the_loader_alone(top: Path, tmp_path: Path, fake: Path) -> None:
    (top / "boot/kernel").mkdir()
    (top / "boot/kernel/zfs.ko").write_bytes(b"x")
    with (top / "METALOG").open("a") as file:
        file.write("./boot/kernel type=dir uid=0 gid=0 mode=0755\n./boot/kernel/zfs.ko type=file uid=0 gid=0 mode=0555\n")
    assert put_together(top, elf(tmp_path / "kernel"), "zfs").types == ("hvm",)


def test_a_pool_too_small_for_the_world(top: Path, tmp_path: Path, fake: Path) -> None:
    with pytest.raises(UsageError, match="do not fit in a pool of 96 MiB"):
        put_together(top, elf(tmp_path / "kernel", text=ZFS_KERNEL), "zfs", 96)


def test_a_pool_grows_with_the_world() -> None:
    def make(work: Path) -> dict[str, object]:
        (work / "METALOG").write_text(". type=dir uid=0 gid=0 mode=0755\n./vi type=file uid=0 gid=0 mode=0555\n")
        (work / "tree").mkdir()
        with (work / "tree/vi").open("wb") as file:
            file.truncate(1 << 30)
        return {"leave_out": []}

    grown = fit(layout.load("zfs"), entries.get_or_create("worlds", "large", make))
    assert {fs.type: fs.size for _, _, fs in grown.parts} == {"efi": 33, "boot": 0, "zfs": 2048, "swap": 64}


def test_images_of_the_small_worlds_run_fewer_scripts_of_rc_in_the_same_order() -> None:
    cron = "#!/bin/sh\n#\n#\n\n# PROVIDE: cron\n# REQUIRE: LOGIN FILESYSTEMS\n# BEFORE: securelevel\n# KEYWORD: shutdown\n\nrun_rc_command\n"

    def idle(preset: str) -> dict[str, bytes]:
        def make(work: Path) -> dict[str, object]:
            lines = [". type=dir uid=0 gid=0 mode=0755"]
            (work / "tree/etc/rc.d").mkdir(parents=True)
            for name in ("cron", "netif", "new_in_16"):
                (work / "tree/etc/rc.d" / name).write_text(cron)
                lines.append(f"./etc/rc.d/{name} type=file uid=0 gid=0 mode=0555")
            (work / "METALOG").write_text("\n".join(lines) + "\n")
            return {"leave_out": [], "preset": preset}

        made = entries.get_or_create("worlds", f"of-{preset.replace(' ', '-')}", make)
        return dict(idle_scripts(made, tree_of(made)).files)

    short = b"#!/bin/sh\n#\n# PROVIDE: cron\n# REQUIRE: LOGIN FILESYSTEMS\n# BEFORE: securelevel\n# KEYWORD: nostart\n"
    assert idle("small") == idle("zfs") == {"./etc/rc.d/cron": short}
    assert idle("full") == idle("as installed") == {}


def test_every_script_of_rc_that_the_suites_use_runs() -> None:
    top = Path(__file__).parents[2]
    texts = [path.read_text() for name in ("suites", "harness") for path in (top / name).rglob("*.py")]
    used = {name for text in texts for name in re.findall(r"/etc/rc\.d/(\w+) (?:one)?(?:start|stop)", text)}
    assert {"dumpon", "kld"} <= used
    needed = {
        "dhclient",
        "fsck",
        "hostname",
        "local",
        "mountcritlocal",
        "netif",
        "root",
        "routing",
        "savecore",
        "swap",
        "sysctl",
        "zfs",
    }
    assert not (used | needed) & set(src_conf.idle_rc_scripts())


# -- configuration of a guest -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "mountfrom"), [("uefi", "ufs:/dev/xbd0p3"), ("vmimage", "ufs:/dev/gpt/rootfs"), ("zfs", "zfs:zroot/ROOT/default")]
)
def test_the_guests_root(top: Path, tmp_path: Path, fake: Path, name: str, mountfrom: str) -> None:
    given = freebsd_source.from_image(put_together(top, elf(tmp_path / "kernel", text=ZFS_KERNEL), name))
    assert given.os.default_variables(given.root, False)["vfs.root.mountfrom"] == mountfrom
    assert rootfs.spec(given.root) == mountfrom


def test_an_image_from_before_there_were_firmwares(top: Path, tmp_path: Path, fake: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = put_together(top, elf(tmp_path / "kernel"), "gpt")
    new = ("mountfrom", "firmwares", "root_device", "root_label")
    old = {key: value for key, value in made.data.items() if key not in new}
    monkeypatch.setattr(image.Image, "data", property(lambda _: old))
    assert (made.mountfrom, made.firmwares, made.root_device, made.zfs) == ("ufs:/dev/xbd0p2", ("bios",), "xbd0p2", False)
    monkeypatch.setattr(image.Image, "data", property(lambda _: old | {"types": ["pvh"]}))
    assert made.firmwares == ()


def test_root_as_it_is_mounted() -> None:
    guest_os = FreeBSD(version="15.1")
    assert (
        guest_os.root_device(lambda _: "zroot/ROOT/default\t/\t\t\tzfs\trw,nfsv4acls\t0 0\ndevfs /dev devfs rw 0 0")
        == "zroot/ROOT/default"
    )
    assert rootfs.mounted_as("zfs:zroot/ROOT/default") == "zroot/ROOT/default"
    assert rootfs.mounted_as("xbd0p2") == rootfs.mounted_as("ufs:/dev/xbd0p2") == "/dev/xbd0p2"


STATUS = """  pool: zroot
 state: ONLINE
status: Some supported and requested features are not enabled on the pool.
\tThe pool can still be used, but some features are unavailable.
  scan: scrub repaired 0B in 00:00:02 with 0 errors on Mon Nov 30 15:00:00 2026
config:

\tNAME          STATE     READ WRITE CKSUM
\tzroot         ONLINE       0     0     0
\t  gpt/rootfs  ONLINE       0     0     2

errors: No known data errors
"""
GEOM = """0 DISK xbd0 1200000000 512 hd 0 sc 0
1 PART xbd0p4 1073741824 512 i 4 o 35000000
2 LABEL gpt/rootfs 1073741824 512 i 0 o 0
"""


def test_zpool_status() -> None:
    found = rootfs.parse_status(STATUS)
    assert (found.name, found.state, found.errors) == ("zroot", "ONLINE", "No known data errors")
    assert found.members == (rootfs.Member("gpt/rootfs", "ONLINE", (0, 0, 2)),)
    with pytest.raises(Exception, match="not the output of `zpool status`"):
        rootfs.parse_status("cannot open 'zroot': no such pool\n")


def test_the_disk_below_a_root() -> None:
    answers = {"zpool status -p zroot": STATUS, "sysctl -n kern.geom.conftxt": GEOM}

    def run(command: str, timeout: float = 0) -> str:
        return answers[command]

    assert rootfs.device(run, "zroot/ROOT/default") == "xbd0p4"
    assert rootfs.device(run, "/dev/gpt/rootfs") == "xbd0p4"
    assert rootfs.device(run, "/dev/xbd0p2") == "xbd0p2"
    assert rootfs.device(run, "/dev/ufs/none") == ""
    answers["zpool status -p zroot"] = STATUS.replace("gpt/rootfs", "xbd0p4    ")
    assert rootfs.device(run, "zroot/ROOT/default") == "xbd0p4"


def test_sizes_of_a_layout_leave_the_esp_alone() -> None:
    found = layout.load("uefi", size=700, bsize=8192)
    assert [(fs.type, fs.size) for _, _, fs in found.parts] == [("efi", 33), ("boot", 0), ("ufs2", 700), ("swap", 64)]
    assert replace(found, vdevs=found.vdevs).key == found.key
