"""Makes file systems without root: UFS by a makefs, ext2 by mke2fs."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import uuid
from dataclasses import dataclass
from pathlib import Path

from harness.digest import file_sha256
from harness.errors import BuildError, UsageError
from harness.images import metalog
from harness.images.layout import FileSystem
from harness.images.metalog import Tree

# One moment for all files, so that the same inputs give the same image.
_EPOCH = "1700000000"
_FREE_INODES = 20000
_INODES_PER_MIB = 40


@dataclass(frozen=True)
class Makefs:
    """A makefs. FreeBSD's takes a manifest and makes both UFS; Debian's package is NetBSD's and makes UFS1 only."""

    path: Path
    freebsd: bool
    origin: str

    @property
    def hash(self) -> str:
        return file_sha256(self.path)


def find(built: Path | None) -> Makefs | None:
    """The makefs to use: ``built`` with the world, the one in ``FXH_MAKEFS``, FreeBSD's own, or Debian's package."""
    given = os.environ.get("FXH_MAKEFS")
    if given:
        return Makefs(Path(given), True, "FXH_MAKEFS")
    if built is not None and built.is_file():
        return Makefs(built, True, "built with the world")
    path = shutil.which("makefs", path=f"{os.environ.get('PATH', '')}:/usr/sbin")
    if path is None:
        return None
    return Makefs(Path(path), sys.platform.startswith("freebsd"), path)


def check(makefs: Makefs | None, fs: FileSystem) -> None:
    """Raises BuildError when ``fs`` cannot be made by this makefs."""
    if fs.type == "ext2" and shutil.which("mke2fs", path=f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin") is None:
        raise BuildError("an ext2 file system needs mke2fs", mend="apt-get install e2fsprogs")
    if fs.type not in ("ufs1", "ufs2"):
        return
    if makefs is None:
        raise BuildError("a UFS needs makefs, and there is none", mend="apt-get install makefs (UFS1), or build a world from --src")
    if fs.type == "ufs2" and not makefs.freebsd:
        raise BuildError(
            f"UFS2 needs FreeBSD's makefs: that of {makefs.origin} is NetBSD's, and FreeBSD refuses its UFS2 (fs_sblockloc)",
            mend="take a layout with UFS1, or a world built from --src (it brings its makefs), or name one in FXH_MAKEFS",
        )


def ufs(makefs: Makefs, fs: FileSystem, tree: Tree, etc: Path, target: Path, label: str) -> None:
    """Write ``tree`` as a UFS to ``target``. ``etc`` has the guest's master.passwd and group: names become numbers by them.

    Raises UsageError when it does not fit, BuildError with the tool's words.
    """
    check(makefs, fs)
    needed = metalog.size(tree)
    if needed > fs.bytes * 0.93:
        raise UsageError(
            f"{needed >> 20} MiB of files do not fit on a {fs.mount} of {fs.size} MiB", mend=f"--size {(needed >> 20) * 3 // 2}"
        )
    options = f"version={fs.type[-1]},bsize={fs.bsize},fsize={fs.bsize // 8}"
    common = [
        "-t",
        "ffs",
        "-B",
        "little",
        "-N",
        str(etc),
        "-T",
        _EPOCH,
        "-s",
        str(fs.bytes),
        "-f",
        str(min(_FREE_INODES, fs.size * _INODES_PER_MIB)),
    ]
    with tempfile.TemporaryDirectory(prefix=".makefs-", dir=target.parent) as scratch:
        manifest = Path(scratch) / "manifest"
        if makefs.freebsd:
            manifest.write_text(metalog.render(tree, target.parent))
            argv = [*_steady(), str(makefs.path), "-Z", *common, "-o", f"{options},label={label}", str(target), str(manifest)]
        else:
            manifest.write_text(metalog.render(tree))
            _stage(tree, Path(scratch) / "tree")
            argv = [*_steady(), str(makefs.path), *common, "-F", str(manifest), "-x", "-o", options, str(target), f"{scratch}/tree"]
        run(argv, where=target.parent)
        if not makefs.freebsd and shutil.which("fallocate"):
            # NetBSD's writes every block: the holes are dug afterwards.
            run(["fallocate", "--dig-holes", str(target)])


def _steady() -> list[str]:
    """makefs leaves addresses of its own in the superblock: without address randomisation they are the same each time."""
    return ["setarch", "-R"] if sys.platform.startswith("linux") else []


def _stage(tree: Tree, top: Path) -> None:
    """The tree as links to its files: NetBSD's makefs takes a directory."""
    top.mkdir()
    for path in sorted(tree, key=lambda p: p.split("/")):
        node, where = tree[path], top / metalog.unvis(path)
        if node.type == "dir":
            where.mkdir(exist_ok=True)
        elif node.type == "link":
            where.symlink_to(metalog.unvis(node.attributes["link"]))
        elif node.contents is not None:
            try:
                os.link(node.contents, where)
            except OSError:
                shutil.copy2(node.contents, where)


def ext2(fs: FileSystem, tree: Tree, target: Path, seed: str) -> None:
    """Write ``tree`` as an ext2 to ``target``: for pygrub, which knows it; FreeBSD only mounts it when asked."""
    check(None, fs)
    with tempfile.TemporaryDirectory(prefix=".mke2fs-", dir=target.parent) as scratch:
        _stage(tree, Path(scratch) / "tree")
        identity = str(uuid.uuid5(uuid.NAMESPACE_OID, seed))
        argv = [
            "mke2fs", "-q", "-F", "-t", "ext2", "-m", "0", "-U", identity, "-E", f"hash_seed={identity},root_owner=0:0",
            "-d", f"{scratch}/tree", str(target), f"{fs.size}M",
        ]  # fmt: skip
        run(argv, {"SOURCE_DATE_EPOCH": _EPOCH, "E2FSPROGS_FAKE_TIME": _EPOCH})


def run(argv: list[str], extra: dict[str, str] | None = None, where: Path | None = None) -> None:
    """Run a tool that makes file systems. Raises BuildError with its words."""
    environment = {**os.environ, **(extra or {}), "LC_ALL": "C", "PATH": f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin"}
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
        raise BuildError(f"this machine lacks {argv[0]}", mend="fxh setup") from exc
    if done.returncode:
        raise BuildError(
            f"{Path(argv[0]).name} ended with {done.returncode}: {(done.stderr or done.stdout).strip()[-600:]}\n  {' '.join(argv)}"
        )
