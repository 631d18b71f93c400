# SPDX-License-Identifier: BSD-2-Clause
"""World presets: the options of a source tree that each turns off."""

from __future__ import annotations

import re
import tomllib
from dataclasses import dataclass

from harness import paths
from harness.errors import UsageError
from harness.images.srctree import SourceTree

SMALL = ("small", "zfs")
PRESETS = (*SMALL, "full")
# __DEFAULT_YES_OPTIONS = \     (names on the following lines, each but the last with a backslash)
_DEFAULT_YES = re.compile(r"^__DEFAULT_YES_OPTIONS\s*\+?=((?:.*\\\n)*.*)$", re.MULTILINE)
# For a compiler and linker other than the tree's. It changes no byte of a build that succeeds without it.
# WERROR: WITHOUT_WERROR does not reach sys/conf/kern.pre.mk, and clang 19 warns of the DDB of 13.2.
# CFLAGS: the tzcode of 13.2 writes `static [[noreturn]] void` where the compiler knows such attributes, and clang 17 and later refuses it.
# SOLINKOPTS: lld 16 and later refuses a version script with an undefined symbol. 14 and later set this themselves (share/mk/bsd.lib.mk).
MAKE_CONF = """\
WERROR=
CFLAGS.zdump.c+='-D__has_c_attribute(x)=0'
CFLAGS.zic.c+='-D__has_c_attribute(x)=0'
SOLINKOPTS+=${LINKER_TYPE:Mlld:S/lld/-Wl,--undefined-version/}
"""


@dataclass(frozen=True)
class WorldPreset:
    """``src_conf`` is the text of SRCCONF. Paths below ``leave_out`` do not go into an image."""

    name: str
    src_conf: str
    leave_out: tuple[str, ...]


def default_yes(text: str) -> tuple[str, ...]:
    """The options that a file of share/mk turns on by default, without computed names."""
    names = [word for block in _DEFAULT_YES.findall(text) for word in block.replace("\\", " ").split()]
    return tuple(dict.fromkeys(name for name in names if re.fullmatch(r"[A-Z0-9_]+", name)))


def small(options: tuple[str, ...], drop: frozenset[str]) -> str:
    """Return the SRCCONF text that turns off every option of ``options`` that ``drop`` lists."""
    return "".join(f"WITHOUT_{name}=yes\n" for name in sorted(set(options) & drop))


def makefs_knob(tree: SourceTree) -> str:
    """Return the SRCCONF line that builds makefs among the bootstrap tools; "" if the tree has no such option.

    The option came with 14.0. Since 15.0 makefs links libsbuf, and only this option builds libsbuf first (Makefile.inc1).
    """
    return "WITH_DISK_IMAGE_TOOLS_BOOTSTRAP=yes\n" if "DISK_IMAGE_TOOLS_BOOTSTRAP" in tree.read("Makefile.inc1") else ""


def makes_zfs(tree: SourceTree) -> bool:
    """Whether the tree's makefs writes ZFS (14.0 and later)."""
    return bool(tree.read("usr.sbin/makefs/zfs.c"))


def idle_rc_scripts() -> tuple[str, ...]:
    """The names of rc(8)'s scripts that images of the small worlds do not run."""
    return tuple(_small()["idle_rc_scripts"])


def _small() -> dict[str, list[str]]:
    return tomllib.loads((paths.project() / "images/freebsd/small.toml").read_text())


def preset(tree: SourceTree, name: str) -> WorldPreset:
    """The preset ``name``. Raises UsageError for an unknown name, and for ZFS if the tree's makefs cannot write it."""
    if name not in PRESETS:
        raise UsageError(f"world {name!r}", hint=f"give one of {', '.join(PRESETS)}; for only a kernel: --src TREE --base IMAGE")
    if name == "zfs" and not makes_zfs(tree):
        raise UsageError(
            f"{tree.path}: the makefs of FreeBSD {tree.version} cannot write ZFS",
            hint="give a tree of 14.0 or later, or a layout with UFS",
        )
    data = _small()
    leave_out = tuple(data["leave_out"])
    # A compiler other than the tree's prints warnings that the tree does not expect.
    common = makefs_knob(tree) + "WITHOUT_WERROR=yes\n"
    if name == "full":
        return WorldPreset(name, common, leave_out[:2])
    options = default_yes(tree.read("share/mk/bsd.opts.mk")) + default_yes(tree.read("share/mk/src.opts.mk"))
    drop = frozenset(data["drop"]) | (frozenset(data["zfs"]) if name == "small" else frozenset())
    return WorldPreset(name, common + small(options, drop), leave_out)
