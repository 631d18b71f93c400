# SPDX-License-Identifier: BSD-2-Clause
"""Reads config(8)'s lists of kernel sources: the files that a configuration compiles, and the options of each optional file.

Sources: config(5), usr.sbin/config/mkmakefile.c (read_file), sys/conf/files, sys/conf/files.amd64, sys/conf/files.x86.
"""

from __future__ import annotations

import posixpath
import re
from dataclasses import dataclass

from harness.images.srctree import SourceTree

LISTS = ("sys/conf/files", "sys/conf/files.x86", "sys/conf/files.amd64")

# dev/xen/timer/xen_timer.c	optional xenhvm xentimer
# "compile-with" and similar words take one quoted argument, which may contain any of these words.
_WORD = re.compile(r'"[^"]*"|\||!?[^\s|"]+')
_WITH_ARGUMENT = ("compile-with", "dependency", "clean", "warning", "obj-prefix")
_FLAGS = ("no-obj", "no-implicit-rule", "before-depend", "no-ctfconvert", "no-depend", "nowerror", "local", "profiling-routine")


@dataclass(frozen=True)
class KernelSource:
    """One line of a list. ``path`` is relative to sys/; the file is compiled if one of ``alternatives`` holds.

    An alternative is a tuple of lower-case device and option names; ``!name`` must be absent. ``()`` is a standard file.
    ``generated``: the build generates the file from ``dependencies`` (paths relative to sys/).
    """

    path: str
    alternatives: tuple[tuple[str, ...], ...]
    generated: bool = False
    dependencies: tuple[str, ...] = ()

    def selected(self, names: frozenset[str]) -> bool:
        """Whether a configuration with these lower-case names compiles this file."""
        return any(
            all((word[1:] not in names) if word.startswith("!") else (word in names) for word in words)
            for words in self.alternatives
        )

    def lacking(self, names: frozenset[str]) -> tuple[str, ...]:
        """The names that the nearest alternative lacks; () if the file is selected, or only a ``!name`` excludes it."""
        gaps = [tuple(word for word in words if not word.startswith("!") and word not in names) for words in self.alternatives]
        return min(gaps, key=len, default=())


def parse(text: str) -> tuple[KernelSource, ...]:
    """The sources of one list, in order."""
    found = []
    for line in text.replace("\\\n", " ").splitlines():
        words = _WORD.findall(line.partition("#")[0].replace("$M", "amd64"))
        if len(words) < 2 or words[1] not in ("standard", "optional", "mandatory"):
            continue
        alternatives: list[list[str]] = [[]]
        flags, dependencies, at = set(), "", 2
        while at < len(words):
            word = words[at]
            if word in _WITH_ARGUMENT:
                dependencies += words[at + 1] if word == "dependency" and at + 1 < len(words) else ""
                at += 1
            elif word in _FLAGS:
                flags.add(word)
            elif word == "|":
                alternatives.append([])
            else:
                alternatives[-1].append(word.lower())
            at += 1
        found.append(
            KernelSource(
                words[0],
                tuple(tuple(words) for words in alternatives),
                generated="no-implicit-rule" in flags,
                dependencies=tuple(re.findall(r"\$S/([\w./-]+)", dependencies)),
            )
        )
    return tuple(found)


def sources(tree: SourceTree) -> tuple[KernelSource, ...]:
    """The kernel sources of an amd64 tree."""
    return tuple(source for name in LISTS for source in parse(tree.read(name)))


# device		ahci		# AHCI-compatible SATA controllers       also nodevice and nodevices
# options 	SCSI_DELAY=5000		# Delay (in ms) before probing SCSI
# makeoptions and cpu lines select no file.
_LINE = re.compile(r'^(nodevices?|devices?|nooptions?|options?|include)\s+"?([^\s#"]+)', re.MULTILINE)


def names(tree: SourceTree, name: str, ours: dict[str, str]) -> frozenset[str]:
    """The lower-case device and option names of the configuration ``name``, with its includes.

    ``ours`` has the files of the build's configuration directory by name. Other includes come from the tree: relative to
    sys/amd64/conf, or from sys/conf (usr.sbin/config/lang.l, include()).
    """
    found: set[str] = set()
    _collect(tree, f"include {name}", ours, found, 0)
    return frozenset(found)


def _collect(tree: SourceTree, text: str, ours: dict[str, str], found: set[str], depth: int) -> None:
    for what, value in _LINE.findall(text):
        if what == "include":
            if depth < 16:
                places = (posixpath.normpath(f"sys/amd64/conf/{value}"), f"sys/conf/{value}")
                included = ours.get(value) or next((there for place in places if (there := tree.read(place))), "")
                _collect(tree, included, ours, found, depth + 1)
            continue
        for name in value.split(","):
            bare = name.partition("=")[0].lower()
            if what.startswith("no"):
                found.discard(bare)
            else:
                found.add(bare)
