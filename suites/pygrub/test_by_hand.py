# SPDX-License-Identifier: BSD-2-Clause
"""What pygrub makes of a volume: run by hand in dom0 on images, no guest is started."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from harness.errors import HarnessError
from harness.guests import bootable, partitions
from harness.guests.partitions import Slice
from harness.oracles.finding import finding
from harness.plugin.case_context import CaseContext
from harness.xen.pygrub import Extract

from .conftest import MENU, Kernel, Run, kernel

pytestmark = pytest.mark.needs(capability=("pygrub",), once=True)

Ufs = Callable[..., bytes]
NOT_FOUND = "RuntimeError: Unable to find partition containing kernel"
KERNEL = "boot/kernel/kernel"


def files(image: Kernel, menu: str | bytes = MENU, **more: bytes) -> dict[str, bytes]:
    text = menu.encode() if isinstance(menu, str) else menu
    return {KERNEL: image.data, "boot/grub/menu.lst": text, **more}


def judge(done: Extract, image: Kernel, asked: str, source: str) -> None:
    """The kernel came out, whole."""
    did = "it extracted something else than the kernel" if done.digest("kernel") else f"status {done.status}: {done.complaint}"
    assert done.digest("kernel") == image.digest, finding(
        test=asked, observed=did, expected="extracts the kernel, byte for byte", reference=source
    )


@pytest.mark.parametrize("bsize", [4096, 8192, 16384, 32768, 65536])
def test_reads_ufs1(run: Run, ufs: Ufs, bsize: int) -> None:
    """C1: a raw UFS1, whatever its block size."""
    image = kernel(300_000)
    judge(run(ufs(files(image), bsize=bsize)), image, f"a raw UFS1 with blocks of {bsize}", "xen tools/libfsimage/ufs/fsys_ufs.c")


@pytest.mark.parametrize("bsize", [8192, 32768])
def test_reads_ufs2(run: Run, ufs: Ufs, bsize: int) -> None:
    """C2: a raw UFS2, which newfs makes by default and every official image has."""
    image = kernel(300_000)
    judge(
        run(ufs(files(image), version=2, bsize=bsize)), image, f"a raw UFS2 with blocks of {bsize}",
        "xen tools/libfsimage/ufs/fsys_ufs.c, which knows the super block at 8 KiB and UFS1's magic alone",
    )  # fmt: skip


@pytest.mark.parametrize("start", [0, 16])
def test_reads_bsd_slice(run: Run, ufs: Ufs, start: int) -> None:
    """C3: an MBR slice of FreeBSD's, with its file system at the start of the slice, or behind a BSD label (offset 16)."""
    image = kernel(300_000)
    disk = partitions.mbr([Slice(partitions.FREEBSD_SLICE, bytes(start * 512) + ufs(files(image)), active=True)])
    judge(run(disk), image, f"an MBR slice of type 0xa5, file system at sector {start} of it", "xen tools/pygrub/src/pygrub")


def test_reads_gpt(run: Run, ufs: Ufs) -> None:
    """C4: GPT with freebsd-boot in front of freebsd-ufs: all entries are tried."""
    image = kernel(300_000)
    disk = partitions.gpt([(partitions.FREEBSD_BOOT, bytes(65536)), (partitions.FREEBSD_UFS, ufs(files(image)))])
    judge(run(disk), image, "GPT: freebsd-boot, then freebsd-ufs with UFS1", "xen tools/pygrub/src/pygrub, get_partition_offsets()")


def test_active_slice_first(run: Run, ufs: Ufs) -> None:
    """C5: of two slices with a kernel each, the active one is booted."""
    first, second = kernel(200_000, 1), kernel(200_000, 2)
    disk = partitions.mbr(
        [Slice(partitions.FREEBSD_SLICE, ufs(files(first))), Slice(partitions.FREEBSD_SLICE, ufs(files(second)), active=True)]
    )
    judge(run(disk), second, "two slices, the second is active", "xen tools/pygrub/src/pygrub:297 compares bytes with str")


def test_reads_ext2(run: Run, tmp_path: Path) -> None:
    """C1: the ext2 that a boot partition of a Linux-minded administrator is."""
    image = kernel(300_000)
    bootable.write_tree(tmp_path / "t", files(image))
    bootable.make_ext2(tmp_path / "t", tmp_path / "e.img", 4)
    judge(run((tmp_path / "e.img").read_bytes()), image, "a raw ext2", "xen tools/libfsimage/ext2fs-lib")


@pytest.mark.parametrize("size", [60_000, 3_000_000, 5_500_000], ids=["direct", "single", "double"])
def test_follows_block_trees(run: Run, ufs: Ufs, size: int) -> None:
    """C10: kernels beyond the direct, the single and the double indirect blocks (4 KiB blocks: 48 KiB, 4 MiB)."""
    image = kernel(size)
    judge(run(ufs(files(image), bsize=4096)), image, f"a kernel of {size} bytes on 4 KiB blocks", "fsys_ufs.c, sbmap()")


@pytest.mark.parametrize(("hole", "bsize"), [(900_000, 8192), (9_000_000, 4096)], ids=["blocks", "indirect"])
def test_sparse_kernel(run: Run, ufs: Ufs, case: CaseContext, tmp_path: Path, hole: int, bsize: int) -> None:
    """C10: holes in a kernel come out as zeros, also one so long that an indirect block of block numbers is missing."""
    image = Kernel(kernel(100_000).data + bytes(hole) + kernel(100_000, 2).data)
    volume = tmp_path / "volume.img"
    volume.write_bytes(ufs(files(image), bsize=bsize))
    holes = bootable.holes_in(volume, KERNEL)
    if holes < hole // bsize - 1:
        raise HarnessError(f"the kernel on the volume has {holes} holes, so the case would show nothing")

    done = run(volume.read_bytes())

    case.metrics["holes"] = float(holes)
    judge(done, image, f"a kernel with {holes} blocks that are holes", "xen tools/libfsimage/ufs/fsys_ufs.c, sbmap()")


def test_symlink_is_not_followed(run: Run, ufs: Ufs) -> None:
    """C11: a kernel that is a symbolic link is refused with a word, not followed out of the volume."""
    image = kernel(100_000)
    volume = ufs({"boot/real": image.data, "boot/grub/menu.lst": MENU.encode()}, links={KERNEL: "../real"})
    done = run(volume)
    assert (done.status, done.kernel) == (1, ""), f"status {done.status}, kernel {done.kernel}: {done.complaint}"


@pytest.mark.parametrize(
    ("menu", "extra", "args"),
    [
        ("a=1,b=2", "", "a=1,b=2"),
        ("", "c=3", " c=3"),
        ("a=1,b=2", "c=3", "a=1,b=2 c=3"),
        ("a=1 b=2", "c=3,d=4", "a=1 b=2 c=3,d=4"),
    ],
)
def test_arguments(run: Run, ufs: Ufs, menu: str, extra: str, args: str) -> None:
    """C8: the arguments of menu.lst and of the toolstack, joined by a blank (which FreeBSD up to 13 does not split at)."""
    text = MENU.replace("vfs.root.mountfrom=ufs:/dev/xbd0", menu)
    done = run(ufs(files(kernel(50_000), text)), *([f"--args={extra}"] if extra else []))
    assert done.args == args, f"menu.lst has {menu!r}, --args {extra!r}: pygrub says {done.args!r}; {done.complaint}"


SECOND = "title Second\nkernel /boot/second b=2\n"


@pytest.mark.parametrize(
    ("name", "menu", "wanted"),
    [
        ("default 1", MENU.replace("default=0", "default=1") + SECOND, "second"),
        ("default out of range", MENU.replace("default=0", "default=7") + SECOND, "first"),
        ("default by title, which is taken as 0", MENU.replace("default=0", "default=Second") + SECOND, "first"),
        ("no timeout", MENU.replace("timeout=0\n", ""), "first"),
        ("CRLF", MENU.replace("\n", "\r\n"), "first"),
        ("no final newline", MENU.rstrip("\n"), "first"),
        ("comments", "# one\n\n" + MENU.replace("title FreeBSD", "# two\ntitle  Free  BSD "), "first"),
        ("a label in root", MENU.replace("(hd0)", "(hd0,0,a)"), ""),
        ("latin-1", MENU.replace("FreeBSD", "Fr\xe9eBSD").encode("latin-1"), ""),
        ("not there", MENU.replace("kernel/kernel", "kernel/none"), ""),
    ],
)
def test_menu(run: Run, ufs: Ufs, name: str, menu: str | bytes, wanted: str) -> None:
    """C6 C9: the corners of menu.lst: each has one documented outcome."""
    one, two = kernel(50_000, 1), kernel(50_000, 2)
    done = run(ufs(files(one, menu, **{"boot/second": two.data})))
    digests = {"first": one.digest, "second": two.digest, "": ""}
    found = next((key for key, digest in digests.items() if digest == done.digest("kernel")), "something else")
    assert found == wanted, finding(
        test=f"menu.lst: {name}",
        observed=f"it boots {found or 'nothing'} (status {done.status}: {done.complaint})",
        expected=f"boots {wanted}" if wanted else "ends with status 1 and a message",
        reference="xen tools/pygrub/src/GrubConf.py",
    )
    if not wanted:
        assert done.status == 1, f"menu.lst: {name}: it boots nothing, and ends with status {done.status} instead of 1"
        assert done.complaint, f"menu.lst: {name}: it boots nothing, and says nothing"


def test_grub_cfg_hides_menu_lst(run: Run, ufs: Ufs) -> None:
    """C7: a grub.cfg is read in menu.lst's place (since 2011)."""
    one, two = kernel(50_000, 1), kernel(50_000, 2)
    more = {"boot/grub/grub.cfg": b'menuentry "x" {\n linux /boot/second b=2\n}\n', "boot/second": two.data}
    judge(run(ufs(files(one, **more))), two, "both grub.cfg and menu.lst", "xen tools/pygrub/src/pygrub:571")


@pytest.mark.parametrize("style", ["simple", "simple0", "sxp"])
def test_output_formats(run: Run, ufs: Ufs, style: str) -> None:
    """C14: each format gives back kernel and arguments exactly, blanks and quotes in them, too."""
    args = "a='b c' d=\"e\""
    done = run(ufs(files(kernel(50_000), MENU.replace("vfs.root.mountfrom=ufs:/dev/xbd0", args))), style=style)
    assert done.kernel, f"status {done.status}: {done.complaint}"
    assert done.args == args, f"--output-format={style}: the arguments {args!r} came out as {done.args!r}"


def test_listing_says_that_it_fails(run: Run, ufs: Ufs) -> None:
    """``pygrub -l`` on a volume that it cannot read: a status other than 0, as without ``-l``."""
    done = run(ufs(files(kernel(50_000)), version=2), "-l")
    assert done.status != 0, finding(
        test="pygrub -l on a UFS2",
        observed="status 0 and no output",
        expected="ends with a status other than 0",
        reference="xen tools/pygrub/src/pygrub",
    )
