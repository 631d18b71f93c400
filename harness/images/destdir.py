# SPDX-License-Identifier: BSD-2-Clause
"""Reads a world that a user has installed with -DNO_ROOT: a DESTDIR with its METALOG."""

from __future__ import annotations

import re
import shutil
from pathlib import Path
from typing import Any

from harness.digest import file_sha256
from harness.errors import UsageError
from harness.images import entries, metalog, sets
from harness.images.entries import StoreEntry
from harness.images.inputs import Input, combine, key_of

# A guest needs nothing below these directories.
LEAVE_OUT = ("usr/lib/debug", "usr/tests", "usr/include", "boot/dtb", "boot/uboot")


def world(path: Path) -> StoreEntry:
    """A copy of the DESTDIR in the store, keyed by content.

    Raises UsageError for a directory without METALOG, with missing files, or without an owner of a file in etc/master.passwd.
    """
    path = path.expanduser().absolute()
    if not (path / "METALOG").is_file():
        raise UsageError(
            f"{path} has no METALOG: it was not installed with -DNO_ROOT",
            hint="make installworld distribution DESTDIR=... -DNO_ROOT",
        )
    text = (path / "METALOG").read_text()
    tree = metalog.without(metalog.parse(text, path), LEAVE_OUT)
    files = {node.path: node.contents for node in tree.values() if node.contents is not None}
    gone = [name for name, file in files.items() if not file.is_file()]
    if gone:
        raise UsageError(
            f"{path}: METALOG names {gone[0]}, which is missing",
            hint="empty the directory and install again: installs append to METALOG",
        )
    _check_owners(tree, path)
    content = combine([(name, file_sha256(file)) for name, file in sorted(files.items())])
    inputs = [Input("world", combine([content, metalog.render(tree)]), str(path))]

    def fill(work: Path) -> dict[str, Any]:
        for name, file in files.items():
            target = work / "tree" / metalog.unvis(name)
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(file, target)
        (work / "METALOG").write_text(metalog.render(tree))
        return {
            "what": f"world of {path}", "version": version_of(path), "preset": "as installed", "leave_out": [],
            "inputs": [vars(item) for item in inputs],
        }  # fmt: skip

    return entries.get_or_create("worlds", key_of(*inputs), fill)


def _check_owners(tree: metalog.Tree, top: Path) -> None:
    """makefs finds the numbers of owners in these files; it stops at the first unknown name and does not say which file it read."""
    for file, key in (("etc/master.passwd", "uname"), ("etc/group", "gname")):
        known = sets.numbers(top / file)
        unknown = sorted({node.attributes[key] for node in tree.values() if key in node.attributes} - known.keys())
        if unknown:
            state = f"{file} lacks {', '.join(unknown)}" if (top / file).is_file() else f"{file} is missing"
            raise UsageError(
                f"{top}: {state}, but METALOG has files of {', '.join(unknown)}",
                hint="install the configuration files too: make distribution DESTDIR=... -DNO_ROOT",
            )


# USERLAND_VERSION="13.2-RELEASE"        (bin/freebsd-version)
_USERLAND = re.compile(r'^USERLAND_VERSION="?(\d{1,4}\.\d{1,4})', re.MULTILINE)


def version_of(top: Path) -> str:
    """The release of an installed world, "" if unknown."""
    path = top / "bin/freebsd-version"
    match = _USERLAND.search(path.read_text(errors="replace")) if path.is_file() else None
    return match[1] if match else ""
