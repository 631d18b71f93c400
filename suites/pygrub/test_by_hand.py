# SPDX-License-Identifier: BSD-2-Clause
"""pygrub on many kinds of volumes. It runs by hand in dom0 on images, and no guest starts."""

from __future__ import annotations

from pathlib import Path

import pytest

from harness.guests import bootable, partitions
from harness.guests.partitions import Slice
from harness.oracles.finding import finding, precondition
from harness.plugin.case_context import CaseContext

from .support import KERNEL, MENU, Kernel, MakeUfs, RunPygrub, assert_extracted, boot_files, make_kernel

pytestmark = [pytest.mark.needs(capability=("pygrub",), once=True), pytest.mark.any_kernel]

UFS = "xen tools/libfsimage/ufs/fsys_ufs.c"
PYGRUB = "xen tools/pygrub/src/pygrub"
GRUB_CONF = "xen tools/pygrub/src/GrubConf.py"


@pytest.mark.parametrize("bsize", [4096, 8192, 16384, 32768, 65536])
def test_reads_ufs1(run_pygrub: RunPygrub, make_ufs: MakeUfs, bsize: int) -> None:
    """pygrub reads a kernel from a raw UFS1 of any block size from 4 to 64 KiB.

    Source: xen tools/libfsimage/ufs/fsys_ufs.c
    """
    kernel = make_kernel(300_000)
    done = run_pygrub(make_ufs(boot_files(kernel), bsize=bsize))
    assert_extracted(done, kernel, f"a raw UFS1 with blocks of {bsize} bytes", UFS)


@pytest.mark.parametrize("bsize", [8192, 32768])
def test_reads_ufs2(run_pygrub: RunPygrub, make_ufs: MakeUfs, bsize: int) -> None:
    """pygrub reads a kernel from a raw UFS2, the default of newfs and the format of every official image.

    Source: xen tools/libfsimage/ufs/fsys_ufs.c
    Catches: libfsimage reads only UFS1 (known issue)
    """
    kernel = make_kernel(300_000)
    done = run_pygrub(make_ufs(boot_files(kernel), version=2, bsize=bsize))
    reference = f"{UFS}, which knows only the superblock at 8 KiB and the magic of UFS1"
    assert_extracted(done, kernel, f"a raw UFS2 with blocks of {bsize} bytes", reference)


@pytest.mark.parametrize("start", [0, 16])
def test_reads_bsd_slice(run_pygrub: RunPygrub, make_ufs: MakeUfs, start: int) -> None:
    """pygrub reads a file system at the start of a FreeBSD MBR slice, and one at sector 16 behind a BSD label.

    Source: xen tools/pygrub/src/pygrub
    Catches: pygrub does not read BSD disklabels (known issue)
    """
    kernel = make_kernel(300_000)
    disk = partitions.mbr([Slice(partitions.FREEBSD_SLICE, bytes(start * 512) + make_ufs(boot_files(kernel)), active=True)])
    assert_extracted(run_pygrub(disk), kernel, f"an MBR slice of type 0xa5, file system at its sector {start}", PYGRUB)


def test_reads_gpt(run_pygrub: RunPygrub, make_ufs: MakeUfs) -> None:
    """On a GPT disk with freebsd-boot before freebsd-ufs, pygrub tries all entries and finds the kernel.

    Source: xen tools/pygrub/src/pygrub, get_partition_offsets()
    """
    kernel = make_kernel(300_000)
    disk = partitions.gpt([(partitions.FREEBSD_BOOT, bytes(65536)), (partitions.FREEBSD_UFS, make_ufs(boot_files(kernel)))])
    test = "a GPT with freebsd-boot, then freebsd-ufs with UFS1"
    assert_extracted(run_pygrub(disk), kernel, test, f"{PYGRUB}, get_partition_offsets()")


def test_active_slice_first(run_pygrub: RunPygrub, make_ufs: MakeUfs) -> None:
    """Of two MBR slices with a kernel, pygrub takes the active one.

    Source: xen tools/pygrub/src/pygrub:297
    Catches: the active flag is compared with a str where Python 3 reads bytes (known issue)
    """
    first, second = make_kernel(200_000, 1), make_kernel(200_000, 2)
    disk = partitions.mbr(
        [
            Slice(partitions.FREEBSD_SLICE, make_ufs(boot_files(first))),
            Slice(partitions.FREEBSD_SLICE, make_ufs(boot_files(second)), active=True),
        ]
    )
    assert_extracted(run_pygrub(disk), second, "two slices, the second is active", f"{PYGRUB}:297 compares bytes with str")


def test_reads_ext2(run_pygrub: RunPygrub, tmp_path: Path) -> None:
    """pygrub reads a kernel from a raw ext2, such as a separate boot partition.

    Source: xen tools/libfsimage/ext2fs-lib
    """
    kernel = make_kernel(300_000)
    bootable.write_tree(tmp_path / "t", boot_files(kernel))
    bootable.make_ext2(tmp_path / "t", tmp_path / "e.img", 4)
    assert_extracted(run_pygrub((tmp_path / "e.img").read_bytes()), kernel, "a raw ext2", "xen tools/libfsimage/ext2fs-lib")


@pytest.mark.parametrize("size", [60_000, 3_000_000, 5_500_000], ids=["direct", "single", "double"])
def test_follows_block_trees(run_pygrub: RunPygrub, make_ufs: MakeUfs, size: int) -> None:
    """pygrub reads kernels beyond the direct, single and double indirect blocks (4 KiB blocks: 48 KiB, 4 MiB).

    Source: xen tools/libfsimage/ufs/fsys_ufs.c, sbmap()
    Catches: a menu.lst that names another kernel file (planted)
    """
    kernel = make_kernel(size)
    done = run_pygrub(make_ufs(boot_files(kernel), bsize=4096))
    assert_extracted(done, kernel, f"a kernel of {size} bytes on 4 KiB blocks", f"{UFS}, sbmap()")


@pytest.mark.parametrize(("hole", "bsize"), [(900_000, 8192), (9_000_000, 4096)], ids=["blocks", "indirect"])
def test_sparse_kernel(run_pygrub: RunPygrub, make_ufs: MakeUfs, case: CaseContext, tmp_path: Path, hole: int, bsize: int) -> None:
    """Holes in a kernel file are read as zeros, also a hole so long that an indirect block is missing.

    Source: xen tools/libfsimage/ufs/fsys_ufs.c, sbmap()
    Catches: a 0 in a double indirect block is not taken for a hole (known issue); a damaged superblock (planted)
    """
    kernel = Kernel(make_kernel(100_000).data + bytes(hole) + make_kernel(100_000, 2).data)
    volume = tmp_path / "volume.img"
    volume.write_bytes(make_ufs(boot_files(kernel), bsize=bsize))
    holes = bootable.holes_in(volume, KERNEL)
    precondition(holes >= hole // bsize - 1, f"the kernel on the volume has only {holes} holes")

    done = run_pygrub(volume.read_bytes())

    case.metrics["holes"] = float(holes)
    assert_extracted(done, kernel, f"a kernel with {holes} blocks that are holes", f"{UFS}, sbmap()")


def test_symlink_is_not_followed(run_pygrub: RunPygrub, make_ufs: MakeUfs) -> None:
    """pygrub refuses a kernel that is a symbolic link.

    Source: xen tools/libfsimage/ufs/fsys_ufs.c
    """
    kernel = make_kernel(100_000)
    volume = make_ufs({"boot/real": kernel.data, "boot/grub/menu.lst": MENU.encode()}, links={KERNEL: "../real"})
    done = run_pygrub(volume)
    assert (done.status, done.kernel) == (1, ""), finding(
        test=f"a UFS1 whose {KERNEL} is a symbolic link",
        observed=f"status {done.status}, kernel {done.kernel or 'none'}: {done.complaint}",
        expected="pygrub does not follow the link, ends with status 1 and extracts no kernel",
        reference=UFS,
    )


@pytest.mark.parametrize(
    ("menu", "extra", "args"),
    [
        ("a=1,b=2", "", "a=1,b=2"),
        ("", "c=3", " c=3"),
        ("a=1,b=2", "c=3", "a=1,b=2 c=3"),
        ("a=1 b=2", "c=3,d=4", "a=1 b=2 c=3,d=4"),
    ],
)
def test_arguments(run_pygrub: RunPygrub, make_ufs: MakeUfs, menu: str, extra: str, args: str) -> None:
    """pygrub joins the arguments of menu.lst and of the toolstack with a blank.

    FreeBSD up to 13 does not take the blank as a separator.

    Source: xen tools/pygrub/src/pygrub:805
    """
    text = MENU.replace("vfs.root.mountfrom=ufs:/dev/xbd0", menu)
    done = run_pygrub(make_ufs(boot_files(make_kernel(50_000), text)), *([f"--args={extra}"] if extra else []))
    assert done.args == args, finding(
        test=f"the arguments {menu!r} in menu.lst and --args={extra!r}",
        observed=f"pygrub returns the arguments {done.args!r}; {done.complaint or 'no error message'}",
        expected=f"pygrub returns {args!r}",
        reference=f"{PYGRUB}:805",
    )


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
def test_menu(run_pygrub: RunPygrub, make_ufs: MakeUfs, name: str, menu: str | bytes, wanted: str) -> None:
    """For each unusual menu.lst pygrub boots the documented entry, or ends with status 1 and a message.

    Source: xen tools/pygrub/src/GrubConf.py
    """
    one, two = make_kernel(50_000, 1), make_kernel(50_000, 2)
    done = run_pygrub(make_ufs(boot_files(one, menu, **{"boot/second": two.data})))
    digests = {"first": one.digest, "second": two.digest, "": ""}
    found = next((key for key, digest in digests.items() if digest == done.digest("kernel")), "other")
    good = found == wanted and (bool(wanted) or (done.status == 1 and bool(done.complaint)))
    assert good, finding(
        test=f"menu.lst: {name}",
        observed=f"pygrub extracts {f'the {found} kernel' if found else 'no kernel'}, status {done.status}: {done.complaint or 'no message'}",
        expected=f"pygrub extracts the {wanted} kernel" if wanted else "pygrub ends with status 1 and a message",
        reference=GRUB_CONF,
    )


def test_grub_cfg_hides_menu_lst(run_pygrub: RunPygrub, make_ufs: MakeUfs) -> None:
    """If a volume has both files, pygrub reads grub.cfg and not menu.lst (since 2011).

    Source: xen tools/pygrub/src/pygrub:571
    """
    one, two = make_kernel(50_000, 1), make_kernel(50_000, 2)
    more = {"boot/grub/grub.cfg": b'menuentry "x" {\n linux /boot/second b=2\n}\n', "boot/second": two.data}
    assert_extracted(run_pygrub(make_ufs(boot_files(one, **more))), two, "both grub.cfg and menu.lst", f"{PYGRUB}:571")


@pytest.mark.parametrize("style", ["simple", "simple0", "sxp"])
def test_output_formats(run_pygrub: RunPygrub, make_ufs: MakeUfs, style: str) -> None:
    """Each output format returns the kernel and the exact arguments, also with blanks and quotes.

    Source: xen tools/pygrub/src/pygrub
    """
    args = "a='b c' d=\"e\""
    menu = MENU.replace("vfs.root.mountfrom=ufs:/dev/xbd0", args)
    done = run_pygrub(make_ufs(boot_files(make_kernel(50_000), menu)), style=style)
    assert (bool(done.kernel), done.args) == (True, args), finding(
        test=f"--output-format={style} with the arguments {args!r} in menu.lst",
        observed=f"status {done.status}, kernel {done.kernel or 'none'}, arguments {done.args!r}: {done.complaint or 'no message'}",
        expected="pygrub returns a kernel and exactly these arguments",
        reference=PYGRUB,
    )


def test_listing_says_that_it_fails(run_pygrub: RunPygrub, make_ufs: MakeUfs) -> None:
    """`pygrub -l` on a volume that it cannot read ends with a status other than 0.

    Source: xen tools/pygrub/src/pygrub
    Catches: pygrub -l prints nothing and ends with status 0 (known issue)
    """
    done = run_pygrub(make_ufs(boot_files(make_kernel(50_000)), version=2), "-l")
    assert done.status != 0, finding(
        test="pygrub -l on a UFS2",
        observed="status 0 and no output",
        expected="pygrub ends with a status other than 0",
        reference=PYGRUB,
    )
