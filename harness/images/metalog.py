# SPDX-License-Identifier: BSD-2-Clause
"""METALOG, the list of files that FreeBSD's installworld writes with -DNO_ROOT: owners, modes, links (mtree(5))."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath

from harness.errors import BuildError

_WANTED = ("type", "uname", "gname", "mode", "link", "contents", "uid", "gid")

_TYPES = ("dir", "file", "link", "char", "block", "fifo", "socket")
# NAME_MAX and PATH_MAX without its NUL (sys/sys/syslimits.h), in bytes.
_LONGEST_NAME, _LONGEST_PATH = 255, 1023
# \\040
_OCTAL = re.compile(r"\\([0-3][0-7]{2})")


@dataclass(frozen=True)
class Node:
    """A path of the guest. ``attributes`` are keywords of mtree(5); ``contents`` is the file on this machine with its data."""

    path: str
    attributes: Mapping[str, str]
    contents: Path | None = None

    @property
    def type(self) -> str:
        return self.attributes["type"]


Tree = dict[str, Node]
"""Nodes by path (``./bin/cat``)."""


# ./bin/cat type=file uname=root gname=wheel mode=0555 size=14136 sha256=...
def parse(text: str, top: Path) -> Tree:
    """The nodes of a METALOG whose files are below ``top``; the last of several lines for a path counts.

    Drops sizes: METALOG has a wrong one for master.passwd, and makefs reads the files. Raises BuildError for a damaged METALOG, and
    for one whose files are outside its tree: a path with ``..``, or a path below a link.
    """
    tree: Tree = {}
    for number, line in enumerate(text.splitlines(), 1):
        if not line.strip() or line.startswith("#"):
            continue
        path, *words = line.split()
        attributes = dict(word.partition("=")[::2] for word in words)
        kind = attributes.get("type")
        if kind not in _TYPES or (path != "." and not path.startswith("./")) or (kind == "link" and "link" not in attributes):
            raise BuildError(f"METALOG, line {number}: {line[:100]!r} describes no file", hint="build the world again")
        if reason := refusal(unvis(path)):
            raise BuildError(f"METALOG, line {number}: {line[:100]!r} has a path that {reason}", hint="build the world again")
        kept = {name: attributes[name] for name in _WANTED if name in attributes}
        tree[path] = Node(path, kept, top / unvis(path) if attributes["type"] == "file" else None)
    if "." in tree and tree["."].type != "dir":
        raise BuildError(f"METALOG: the top of the tree is a {tree['.'].type}", hint="build the world again")
    for path in tree:
        _check_above(tree, path)
    return tree


def refusal(path: str) -> str:
    """The reason why a world cannot contain ``path``, as a verb and its object, or ""."""
    names = path.split("/")
    if ".." in names:
        return "has .. in it"
    if "\0" in path:
        return "has a NUL in it"
    sizes = [len(name.encode(errors="surrogateescape")) for name in names]
    if max(sizes) > _LONGEST_NAME or sum(sizes) + len(sizes) - 1 > _LONGEST_PATH:
        return f"is longer than {_LONGEST_NAME} bytes for a name or {_LONGEST_PATH} for all"
    return ""


def _check_above(tree: Tree, path: str) -> None:
    """Raise BuildError if a node above ``path`` is not a directory. A file below a link would be written outside of the tree."""
    while "/" in path:
        above, _, name = path.rpartition("/")
        if above in tree and tree[above].type != "dir":
            raise BuildError(
                f"METALOG: {above[:200]} is a {tree[above].type}, and {name[:200]} is below it", hint="build the world again"
            )
        path = above


def unvis(path: str) -> str:
    """The path in the file system: mtree(5) encodes blanks and special characters as ``\\040``."""
    if "\\" not in path:
        return path
    parts = _OCTAL.split(path)
    out = b"".join(
        bytes([int(part, 8)]) if number % 2 else part.encode(errors="surrogateescape") for number, part in enumerate(parts)
    )
    return out.decode(errors="surrogateescape")


def add_file(tree: Tree, path: str, contents: Path, mode: str = "") -> None:
    """Put a file at ``path`` (``./etc/fstab``), with the directories above it; an existing file keeps its owner and mode.

    Raises BuildError if a part of the path is not a directory.
    """
    add_directory(tree, str(PurePosixPath(path).parent))
    path = _dotted(path)
    _check_above(tree, path)
    old = tree.get(path)
    attributes = old.attributes if old is not None and old.type == "file" else {"type": "file", "uname": "root", "gname": "wheel"}
    tree[path] = Node(path, {"mode": "0644", **attributes, **({"mode": mode} if mode else {})}, contents)


def add_directory(tree: Tree, path: str) -> None:
    path = _dotted(path)
    if path != "." and path not in tree:
        add_directory(tree, str(PurePosixPath(path).parent))
        tree[path] = Node(path, {"type": "dir", "uname": "root", "gname": "wheel", "mode": "0755"})


def _dotted(path: str) -> str:
    return path if path == "." or path.startswith("./") else f"./{path}"


def without(tree: Tree, prefixes: tuple[str, ...]) -> Tree:
    """The tree without the paths below ``prefixes`` (``usr/tests``)."""
    doomed = tuple(f"./{prefix}" for prefix in prefixes)
    return {path: node for path, node in tree.items() if path not in doomed and not path.startswith(tuple(f"{d}/" for d in doomed))}


def subtree(tree: Tree, mount: str, others: tuple[str, ...]) -> Tree:
    """The nodes of the file system mounted at ``mount``, relative to it; the mount points ``others`` stay as directories."""
    found: Tree = {}
    top = "." if mount == "/" else f".{mount}"
    below = tuple(f".{other}" for other in others if other != mount and (mount == "/" or other.startswith(f"{mount}/")))
    for path, node in tree.items():
        if any(path.startswith(f"{other}/") for other in below):
            continue
        if path == top:
            found["."] = replace(node, path=".")
        elif path.startswith(f"{top}/"):
            inner = "." + path[len(top) :]
            found[inner] = replace(node, path=inner)
    return found


def size(tree: Tree) -> int:
    """Bytes of all files; a hard link counts once."""
    seen, total = set(), 0
    for node in tree.values():
        if node.contents is not None:
            stat = node.contents.stat()
            if (stat.st_dev, stat.st_ino) not in seen:
                seen.add((stat.st_dev, stat.st_ino))
                total += stat.st_size
    return total


def render(tree: Tree, base: Path | None = None) -> str:
    """An mtree specification, sorted; with ``base`` it has the file of each node, as a path from there.

    makefs does not decode ``contents``, so that cannot contain a blank (usr.sbin/makefs/mtree.c).
    """
    lines = ["#mtree 2.0"]
    for path in sorted(tree, key=lambda p: p.split("/")):
        node = tree[path]
        words = [f"{name}={value}" for name, value in node.attributes.items() if name != "contents"]
        if base is not None and node.contents is not None:
            words.append(f"contents={os.path.relpath(node.contents, base)}")
        lines.append(" ".join([path, *words]))
    return "\n".join(lines) + "\n"
