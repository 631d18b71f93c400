# SPDX-License-Identifier: BSD-2-Clause
"""Makes file systems without root: UFS, ZFS and FAT by a makefs, ext2 by mke2fs."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import uuid
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from harness.digest import file_sha256
from harness.errors import BuildError, UsageError
from harness.images import metalog, settle
from harness.images.layout import FileSystem
from harness.images.metalog import Tree

# One time for all files, so that the same inputs give the same image.
_EPOCH = "1700000000"
_FREE_INODES = 20000
_INODES_PER_MIB = 40
# These tools write a FAT if there is no FreeBSD makefs.
_FAT_TOOLS = {"mkfs.fat", "mmd", "mcopy"}
# makefs rounds a file up to a power of two, above 128 KiB to blocks of that size, with indirect blocks of the same size
# (usr.sbin/makefs/zfs.c, dnode_cursor_init()). ZFS needs 4 KiB for a directory and reserves at most 128 MiB (spa_slop_shift and
# spa_min_slop in sys/contrib/openzfs/module/zfs/spa_misc.c).
_ZFS_SECTOR, _ZFS_BLOCK, _ZFS_RESERVED = 4096, 128 << 10, 128 << 20


@dataclass(frozen=True)
class Makefs:
    """A makefs. FreeBSD's takes a manifest and writes UFS1, UFS2, FAT and (14.0 and later) ZFS; NetBSD's (Debian) writes UFS1."""

    path: Path
    freebsd: bool
    origin: str

    @property
    def hash(self) -> str:
        return file_sha256(self.path)

    @property
    def zfs(self) -> bool:
        """Whether it writes ZFS: it then has the option ``poolname`` (usr.sbin/makefs/zfs.c, zfs_prep_opts())."""
        return self.freebsd and b"poolname" in self.path.read_bytes()

    @property
    def poolguid(self) -> bool:
        """Whether it has an option for the GUID of a pool (15.1)."""
        return self.zfs and b"poolguid" in self.path.read_bytes()


def find(built: Path | None) -> Makefs | None:
    """The makefs to use, in this order: ``FXH_MAKEFS``, ``built`` with the world, the system's (FreeBSD's, or Debian's package)."""
    given = os.environ.get("FXH_MAKEFS")
    if given:
        if not (Path(given).is_file() and os.access(given, os.X_OK)):
            raise UsageError(f"FXH_MAKEFS={given}: not a program", hint="set it to the path of FreeBSD's makefs, or unset it")
        return Makefs(Path(given), True, "FXH_MAKEFS")
    if built is not None and built.is_file():
        return Makefs(built, True, "built with the world")
    path = shutil.which("makefs", path=f"{os.environ.get('PATH', '')}:/usr/sbin")
    if path is None:
        return None
    return Makefs(Path(path), sys.platform.startswith("freebsd"), path)


def check(makefs: Makefs | None, fs: FileSystem) -> None:
    """Raise BuildError if this makefs cannot write ``fs``."""
    if fs.type == "ext2" and shutil.which("mke2fs", path=_path()) is None:
        raise BuildError("an ext2 file system needs mke2fs", hint="apt-get install e2fsprogs")
    if fs.type == "zfs" and (makefs is None or not makefs.zfs):
        raise BuildError(
            f"a ZFS needs FreeBSD's makefs of 14.0 or later, and {_origin(makefs)}",
            hint="use a layout with UFS, or a world built from the sources of 14.0 or later, or name a makefs in FXH_MAKEFS",
        )
    if fs.type == "efi" and (makefs is None or not makefs.freebsd):
        lacking = _FAT_TOOLS - {name for name in _FAT_TOOLS if shutil.which(name, path=_path())}
        if lacking:
            raise BuildError(
                f"an EFI system partition needs FreeBSD's makefs or {' and '.join(sorted(lacking))}",
                hint="apt-get install dosfstools mtools, or build a world from --src (it contains makefs)",
            )
    if fs.type not in ("ufs1", "ufs2"):
        return
    if makefs is None:
        raise BuildError("a UFS needs makefs, and there is none", hint="apt-get install makefs (UFS1), or build a world from --src")
    if fs.type == "ufs2" and not makefs.freebsd:
        raise BuildError(
            f"UFS2 needs FreeBSD's makefs: that of {makefs.origin} is NetBSD's, and FreeBSD refuses its UFS2 (fs_sblockloc)",
            hint="use a layout with UFS1, or a world built from --src (it contains makefs), or name one in FXH_MAKEFS",
        )


def ufs(makefs: Makefs, fs: FileSystem, tree: Tree, etc: Path, target: Path, label: str, seed: str = "") -> None:
    """Write ``tree`` as a UFS to ``target``. makefs maps owners to numbers by master.passwd and group in ``etc``.

    The ufsid follows from ``seed``, mount point and label. The last block stays free: libfsimage (pygrub) reads a directory in
    whole blocks and does not find one whose block ends behind the volume. Raises UsageError when the tree does not fit,
    BuildError with the tool's output.
    """
    check(makefs, fs)
    needed = metalog.size(tree)
    if needed > fs.bytes * 0.93:
        raise UsageError(
            f"{needed >> 20} MiB of files do not fit on a {fs.mount} of {fs.size} MiB", hint=f"--size {(needed >> 20) * 3 // 2}"
        )
    options = f"version={fs.type[-1]},bsize={fs.bsize},fsize={fs.bsize // 8}"
    if makefs.freebsd and fs.softupdates:
        options += ",softupdates=1"
    common = [
        "-t",
        "ffs",
        "-B",
        "little",
        *_common(etc, fs.bytes - fs.bsize),
        "-f",
        str(min(_FREE_INODES, fs.size * _INODES_PER_MIB)),
    ]
    with tempfile.TemporaryDirectory(prefix=".makefs-", dir=target.parent) as scratch:
        manifest = Path(scratch) / "manifest"
        if makefs.freebsd:
            manifest.write_text(metalog.render(tree, target.parent))
            argv = [
                *_fixed_addresses(),
                str(makefs.path),
                "-Z",
                *common,
                "-o",
                f"{options},label={label}",
                str(target),
                str(manifest),
            ]
        else:
            manifest.write_text(metalog.render(tree))
            _stage(tree, Path(scratch) / "tree")
            argv = [
                *_fixed_addresses(),
                str(makefs.path),
                *common,
                "-F",
                str(manifest),
                "-x",
                "-o",
                options,
                str(target),
                f"{scratch}/tree",
            ]
        run(argv, where=target.parent)
        settle.ufs_volume(target, settle.identity(f"{seed} {fs.mount} {label}"), int(_EPOCH))
        os.truncate(target, fs.bytes)
        if not makefs.freebsd and shutil.which("fallocate"):
            # NetBSD's makefs writes every block, also those of zeros.
            run(["fallocate", "--dig-holes", str(target)])


def zfs_bytes(tree: Tree) -> int:
    """Bytes that the files and directories of ``tree`` take in a pool written by makefs."""
    total = 0
    for node in tree.values():
        size = node.contents.stat().st_size if node.contents is not None else 0
        blocks = -(-size // _ZFS_BLOCK)
        if blocks > 1:
            total += (blocks + -(-blocks // 1024)) * _ZFS_BLOCK
        elif size or node.type == "dir":
            total += max(_ZFS_SECTOR, 1 << (size - 1).bit_length() if size else 0)
        total += 512  # its dnode
    return total


def mountpoints(datasets: Iterable[str]) -> tuple[str, ...]:
    """The mount points of the datasets that have one: from their property, or below that of their parent.

    >>> mountpoints(["ROOT;mountpoint=none", "var;mountpoint=/var;canmount=off", "var/log;setuid=off"])
    ('/var', '/var/log')
    """
    found: dict[str, str] = {"": "none"}
    for dataset in datasets:
        name, *properties = dataset.split(";")
        parent, _, last = name.rpartition("/")
        above = found.get(parent, "none")
        inherited = "none" if above == "none" else f"{above.rstrip('/')}/{last}"
        found[name] = dict(word.split("=", 1) for word in properties).get("mountpoint", inherited)
    return tuple(path for path in found.values() if path != "none")


def zfs(makefs: Makefs, fs: FileSystem, tree: Tree, etc: Path, target: Path, seed: str) -> None:
    """Write ``tree`` as a pool with the datasets of ``fs`` to ``target``.

    The GUID of the pool follows from ``seed`` if this makefs has an option for it (15.1); all pools of 14.2's have the same.
    Raises UsageError when the tree does not fit, BuildError with the tool's output.
    """
    check(makefs, fs)
    tree = dict(tree)
    for mountpoint in mountpoints(fs.datasets):
        # makefs creates a missing mount point, but not the directories above it.
        metalog.add_directory(tree, f".{mountpoint.rpartition('/')[0]}" if mountpoint.count("/") > 1 else ".")
    needed = zfs_bytes(tree) + _ZFS_RESERVED
    if needed > fs.bytes:
        raise UsageError(f"{needed >> 20} MiB do not fit in a pool of {fs.size} MiB", hint=f"--size {(needed >> 20) * 3 // 2}")
    options = [
        f"poolname={fs.pool}", *([f"poolguid={uuid.uuid5(uuid.NAMESPACE_OID, seed).int >> 65}"] if makefs.poolguid else []),
        f"bootfs={fs.pool}/{fs.bootfs}", "rootpath=/", f"fs={fs.pool};mountpoint=none", *(f"fs={fs.pool}/{dataset}" for dataset in fs.datasets),
    ]  # fmt: skip
    with tempfile.TemporaryDirectory(prefix=".makefs-", dir=target.parent) as scratch:
        manifest = Path(scratch) / "manifest"
        manifest.write_text(metalog.render(tree, target.parent))
        words = [word for option in options for word in ("-o", option)]
        argv = [str(makefs.path), "-t", "zfs", *_common(etc, fs.bytes), *words, str(target), str(manifest)]
        run(argv, where=target.parent)


def fat(makefs: Makefs | None, fs: FileSystem, files: Mapping[str, Path], target: Path, seed: str) -> None:
    """Write ``files``, by path (``EFI/BOOT/BOOTX64.EFI``), as a FAT32 to ``target``.

    As tools/boot/install-boot.sh does for the official images: FAT32, clusters of one sector, label EFISYS.
    Raises BuildError with the tool's output, also when the files do not fit.
    """
    check(makefs, fs)
    serial = uuid.uuid5(uuid.NAMESPACE_OID, seed).int >> 96
    with tempfile.TemporaryDirectory(prefix=".esp-", dir=target.parent) as scratch:
        top = Path(scratch) / "esp"
        for name, source in files.items():
            (top / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(source, top / name)
        paths = sorted(top.rglob("*"))
        for path in paths:
            os.utime(path, (int(_EPOCH), int(_EPOCH)))
        if makefs is not None and makefs.freebsd:
            options = f"fat_type=32,sectors_per_cluster=1,volume_label=EFISYS,volume_id={serial}"
            # -T must precede -o: msdos_parse_opts() copies the time when it reads an option (usr.sbin/makefs/msdos.c).
            run([str(makefs.path), "-t", "msdos", "-T", _EPOCH, "-s", str(fs.bytes), "-o", options, str(target), str(top)])
            return
        with target.open("wb") as file:
            file.truncate(fs.bytes)
        run(["mkfs.fat", "--invariant", "-F", "32", "-s", "1", "-n", "EFISYS", "-i", f"{serial:08x}", str(target)])
        fixed = {"SOURCE_DATE_EPOCH": _EPOCH, "MTOOLSRC": "/dev/null", "TZ": "UTC"}
        for path in paths:
            name = f"::/{path.relative_to(top)}"
            argv = ["mmd", "-i", str(target), name] if path.is_dir() else ["mcopy", "-m", "-i", str(target), str(path), name]
            run(argv, fixed)


def _origin(makefs: Makefs | None) -> str:
    if makefs is None:
        return "this machine has none"
    return f"{makefs.origin} is " + ("of an older FreeBSD, or built without ZFS" if makefs.freebsd else "NetBSD's")


def _path() -> str:
    """The search path for tools: Debian has some of them in /sbin and /usr/sbin."""
    return f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin"


def _common(etc: Path, size: int) -> list[str]:
    """The options that UFS and ZFS share: the guest's user names, the time of all files, the size in bytes."""
    return ["-N", str(etc), "-T", _EPOCH, "-s", str(size)]


def _fixed_addresses() -> list[str]:
    """The command that turns off address randomisation: makefs writes some of its own addresses into the superblock."""
    return ["setarch", "-R"] if sys.platform.startswith("linux") else []


def _stage(tree: Tree, top: Path) -> None:
    """Link the files of ``tree`` into a directory, which NetBSD's makefs and mke2fs take.

    Raises BuildError rather than write through a link: a METALOG can spell one name in two ways.
    """
    top.mkdir()
    for path in sorted(tree, key=lambda p: p.split("/")):
        node, where = tree[path], top / metalog.unvis(path)
        if where.is_symlink() or where.parent.is_symlink():
            raise BuildError(f"METALOG: {path[:200]} is below a link, or has its name", hint="build the world again")
        if node.type == "dir":
            where.mkdir(exist_ok=True)
            where.chmod(0o755)  # independent of the umask
        elif node.type == "link":
            where.symlink_to(metalog.unvis(node.attributes["link"]))
        elif node.contents is not None:
            try:
                os.link(node.contents, where)
            except OSError:
                shutil.copy2(node.contents, where)


def ext2(fs: FileSystem, tree: Tree, target: Path, seed: str) -> None:
    """Write ``tree`` as an ext2 for pygrub to ``target``. FreeBSD does not mount it at boot (noauto)."""
    check(None, fs)
    with tempfile.TemporaryDirectory(prefix=".mke2fs-", dir=target.parent) as scratch:
        _stage(tree, Path(scratch) / "tree")
        identity = str(uuid.uuid5(uuid.NAMESPACE_OID, seed))
        argv = [
            "mke2fs", "-q", "-F", "-t", "ext2", "-O", "^metadata_csum,^64bit", "-m", "0", "-U", identity, "-E", f"hash_seed={identity},root_owner=0:0",
            "-d", f"{scratch}/tree", str(target), f"{fs.size}M",
        ]  # fmt: skip
        run(argv, {"SOURCE_DATE_EPOCH": _EPOCH, "E2FSPROGS_FAKE_TIME": _EPOCH})
        settle.ext2_volume(target, int(_EPOCH))


def run(argv: list[str], extra: dict[str, str] | None = None, where: Path | None = None) -> None:
    """Run a tool that writes file systems. Raises BuildError with its output."""
    environment = {**os.environ, **(extra or {}), "LC_ALL": "C", "PATH": _path()}
    try:
        done = subprocess.run(
            argv,
            cwd=where,
            env=environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            check=False,
        )
    except FileNotFoundError as exc:
        raise BuildError(f"this machine lacks {argv[0]}", hint="fxh setup") from exc
    if done.returncode:
        raise BuildError(
            f"{Path(argv[0]).name} ended with {done.returncode}: {(done.stderr or done.stdout).strip()[-600:]}\n  {' '.join(argv)}"
        )
