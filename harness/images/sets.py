# SPDX-License-Identifier: BSD-2-Clause
"""Writes release sets from an image of the store, named as by FreeBSD's release/Makefile: base.txz, kernel.txz and MANIFEST.

With the kernel's debugging information in the store, also kernel-dbg.txz.
"""

from __future__ import annotations

import logging
import os
import re
import shutil
import subprocess
import tarfile
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from harness import versions
from harness.digest import file_sha256
from harness.errors import BuildError, UsageError
from harness.images import assemble, debugfile, entries, kernelfile, metalog
from harness.images.debugfile import KernelSymbols
from harness.images.image import Image
from harness.images.metalog import Node, Tree

log = logging.getLogger("fxh.images")

# 1980-01-01 for every file, so that equal worlds give equal sets. GNU tar reports 1970 as implausible.
_TIME = 315532800
_KERNEL = "./boot/kernel"
# The description of each set; the installer selects both by default (release/scripts/make-manifest.sh).
_ABOUT = {"base": "Base system (MANDATORY)", "kernel": "Kernel (MANDATORY)", "kernel-dbg": "Kernel (Debugging)"}


@dataclass(frozen=True)
class SetFile:
    """A written set. ``members`` is MANIFEST's number of files, which counts directories and links, too."""

    file: Path
    members: int


@dataclass(frozen=True)
class Owners:
    """The users and groups of a world, numbers by name."""

    users: Mapping[str, int]
    groups: Mapping[str, int]


def write(image: Image, directory: Path, name: str = "") -> Path:
    """Write the sets of ``image`` to ``directory``/releases/<machine>/<name>, the mirror's layout; returns that directory.

    ``name`` defaults to the kernel's release without its patch level, as on the mirror (15.1-RELEASE). The same image gives
    the same bytes, but kernel-dbg.txz needs the kernel's debugging information in the store. Raises UsageError for an image without a world, BuildError if a tool is missing or fails.
    """
    world = entries.find("worlds", str(image.data.get("world", "")) or "none")
    if world is None or image.kernel is None:
        raise UsageError(
            f"{image.name}: its world is not in the store",
            hint="build an image with --src, --dist or --destdir; an image from --disk has no world",
        )
    versions_ = {image.version, str(world.manifest.get("version", "")) or image.version}
    if len(versions_) > 1:
        raise UsageError(
            f"{image.name}: its kernel and world have different releases ({' and '.join(sorted(versions_, key=versions.numbers))})",
            hint="build the image from one tree: fxh image build --src TREE",
        )
    name = name or release_of(image.kernel)
    if not versions.release(name):
        raise UsageError(f"--as {name}: not the name of a release", hint="for example --as 15.1-RELEASE")
    target = directory / "releases" / str(image.data["machine"]) / name
    if target.exists():
        raise UsageError(f"{target} already exists", hint="remove it, or give another directory")
    world.mark_used()
    target.parent.mkdir(parents=True, exist_ok=True)
    work = Path(tempfile.mkdtemp(prefix=f".{name}.", dir=target.parent))
    try:
        made = _sets(assemble.tree_of(world), image.kernel, owners(world.directory / "tree"), work)
        (work / "MANIFEST").write_text(manifest(made))
        for file in work.iterdir():
            file.chmod(0o644)
        work.chmod(0o755)
        work.rename(target)
    finally:
        shutil.rmtree(work, ignore_errors=True)
    return target


def release_of(kernel: Path) -> str:
    """The mirror's name for the release of a kernel file: 15.1-RELEASE for ``FreeBSD 15.1-RELEASE-p1 XENA``."""
    words = kernelfile.banner(kernel.read_bytes()).split()
    return re.sub(r"-p\d+$", "", words[1]) if len(words) > 1 else ""


def manifest(sets: tuple[SetFile, ...]) -> str:
    """MANIFEST: tab-separated file, sha256, number of members, set, description, on or off."""
    rows = []
    for made in sets:
        name = made.file.name.removesuffix(".txz")
        called = name.replace("-", "_")
        rows.append((made.file.name, file_sha256(made.file), str(made.members), called, f'"{_ABOUT[name]}"', "on"))
    return "".join("\t".join(row) + "\n" for row in rows)


def _sets(tree: Tree, kernel: Path, owners_of_world: Owners, work: Path) -> tuple[SetFile, ...]:
    base = {path: node for path, node in tree.items() if not path.startswith(f"{_KERNEL}/")}
    rest = {path: node for path, node in tree.items() if path.startswith(f"{_KERNEL}/") or path in (".", "./boot", _KERNEL)}
    metalog.add_file(rest, f"{_KERNEL}/kernel", kernel, "0555")
    parts = {"base": base, "kernel": rest}
    debug = KernelSymbols(kernel).debug
    if debug is not None:
        parts["kernel-dbg"] = {".": tree["."]}
        metalog.add_file(parts["kernel-dbg"], f"./{debugfile.INSTALLED}", debug, "0555")
    return tuple(archive(nodes, owners_of_world, work / f"{name}.txz") for name, nodes in parts.items())


def archive(tree: Tree, owners_of_world: Owners, target: Path) -> SetFile:
    """Write the nodes of ``tree`` to a .tar.xz in a fixed order. Raises BuildError for a node that a set cannot hold."""
    log.info("writing %s", target.name)
    xz = shutil.which("xz")
    if xz is None:
        raise BuildError("xz is missing", hint="apt-get install xz-utils")
    # At least two threads: with one, xz may write a single block, and the bytes would depend on the number of CPUs.
    threads = max(2, os.cpu_count() or 1)
    first: dict[tuple[int, int], str] = {}
    best = _best_names(tree)
    members = 0
    with target.open("wb") as out:
        packer = subprocess.Popen([xz, "-1", f"-T{threads}", "--no-adjust", "-c"], stdin=subprocess.PIPE, stdout=out)
        assert packer.stdin is not None
        try:
            with packer.stdin, tarfile.open(fileobj=packer.stdin, mode="w|", format=tarfile.PAX_FORMAT) as tar:
                for path in sorted(tree, key=lambda path: path.split("/")):
                    _add(tar, tree[path], owners_of_world, first, best)
                    members += 1
        except BrokenPipeError:  # the exit code of xz gives the reason
            pass
        except BaseException:
            packer.kill()
            raise
        finally:
            status = packer.wait()
    if status:
        raise BuildError(f"xz failed with exit code {status} while it wrote {target}", hint="is the disk full?")
    return SetFile(target, members)


def _add(
    tar: tarfile.TarFile,
    node: Node,
    owners_of_world: Owners,
    first: dict[tuple[int, int], str],
    best: Mapping[tuple[int, int], Node],
) -> None:
    # Members have the names of official sets: ./, ./bin/, ./bin/cat. tarfile adds a directory's last slash.
    info = tarfile.TarInfo(metalog.unvis(node.path))
    info.mtime = _TIME
    if node.contents is None:
        kinds = {"dir": tarfile.DIRTYPE, "link": tarfile.SYMTYPE}
        if node.type not in kinds:
            raise BuildError(
                f"METALOG: {node.path} is a {node.type}: a set holds files, directories and links", hint="remove it there"
            )
        info.type = kinds[node.type]
        info.linkname = metalog.unvis(node.attributes.get("link", ""))
        _set_owner(info, node, owners_of_world)
        tar.addfile(info)
        return
    try:
        with node.contents.open("rb") as file:
            file_stat = os.fstat(file.fileno())
            inode = (file_stat.st_dev, file_stat.st_ino)
            _set_owner(info, best.get(inode, node), owners_of_world)
            if inode in first:
                info.type, info.linkname = tarfile.LNKTYPE, first[inode]
                tar.addfile(info)
                return
            first[inode] = info.name
            info.size = file_stat.st_size
            tar.addfile(info, file)
    except FileNotFoundError as exc:
        raise BuildError(f"METALOG names {node.path}, which the world does not contain", hint="build the world again") from exc


def _best_names(tree: Tree) -> dict[tuple[int, int], Node]:
    """For each file with several names, the node whose METALOG line has most attributes.

    install(1) logs a further hard link without owner, and with the mode masked by 0777 (usr.bin/xinstall/xinstall.c, makelink()).
    """
    found: dict[tuple[int, int], Node] = {}
    for node in tree.values():
        if node.contents is None or not node.contents.is_file():
            continue
        file_stat = node.contents.stat()
        if file_stat.st_nlink > 1:
            known = found.setdefault((file_stat.st_dev, file_stat.st_ino), node)
            if len(node.attributes) > len(known.attributes):
                found[file_stat.st_dev, file_stat.st_ino] = node
    return found


def _set_owner(info: tarfile.TarInfo, node: Node, owners_of_world: Owners) -> None:
    """Set owner, group and mode. A set has numbers and names; METALOG has one of the two, or neither for root."""
    words = node.attributes
    info.mode = int(words.get("mode", "0755" if node.type != "file" else "0644"), 8)
    info.uid, info.uname = _number(words, "uid", "uname", owners_of_world.users, node)
    info.gid, info.gname = _number(words, "gid", "gname", owners_of_world.groups, node)


def _number(words: Mapping[str, str], number: str, name: str, table: Mapping[str, int], node: Node) -> tuple[int, str]:
    if number in words:
        found = int(words[number])
        return found, words.get(name) or next((text for text, value in table.items() if value == found), "")
    if name not in words:
        return 0, next((text for text, value in table.items() if value == 0), "")
    if words[name] not in table:
        raise BuildError(f"METALOG: {node.path} belongs to {words[name]!r}, which is not in etc/master.passwd or etc/group")
    return table[words[name]], words[name]


# root::0:0::0:0:Charlie &:/root:/bin/sh       (master.passwd)
# wheel:*:0:root                               (group)
_OWNER = re.compile(r"^([^:#\n]+):[^:\n]*:(\d+):", re.MULTILINE)


def owners(top: Path) -> Owners:
    """Users and groups of the world below ``top``; at least root and wheel."""
    users, groups = numbers(top / "etc/master.passwd"), numbers(top / "etc/group")
    return Owners({"root": 0} | users, {"wheel": 0} | groups)


def numbers(path: Path) -> dict[str, int]:
    """The names in a master.passwd or group file, with their numbers; empty without the file."""
    rows = _OWNER.findall(path.read_text(errors="replace")) if path.is_file() else []
    return {found: int(number) for found, number in rows}
