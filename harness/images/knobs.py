"""The small world: which options of a source tree are switched off."""

from __future__ import annotations

import re
import tomllib
from dataclasses import dataclass

from harness import paths
from harness.images.srctree import SourceTree

PRESETS = ("small", "full")
# __DEFAULT_YES_OPTIONS = \     (names on the following lines, each but the last with a backslash)
_DEFAULT_YES = re.compile(r"^__DEFAULT_YES_OPTIONS\s*\+?=((?:.*\\\n)*.*)$", re.MULTILINE)


@dataclass(frozen=True)
class WorldPreset:
    """``src_conf`` is the text of SRCCONF; below the paths of ``leave_out`` nothing goes into an image."""

    name: str
    src_conf: str
    leave_out: tuple[str, ...]


def default_yes(text: str) -> tuple[str, ...]:
    """The options that a file of share/mk turns on by default, without those whose names are computed."""
    names = [word for block in _DEFAULT_YES.findall(text) for word in block.replace("\\", " ").split()]
    return tuple(dict.fromkeys(name for name in names if re.fullmatch(r"[A-Z0-9_]+", name)))


def small(options: tuple[str, ...], keep: frozenset[str]) -> str:
    """SRCCONF with every option off that is not kept."""
    return "".join(f"WITHOUT_{name}=yes\n" for name in sorted(set(options) - keep))


def preset(tree: SourceTree, name: str) -> WorldPreset:
    data = tomllib.loads((paths.project() / "images/freebsd/small.toml").read_text())
    leave_out = tuple(data["leave_out"])
    if name == "full":
        return WorldPreset(name, "", leave_out[:2])
    options = default_yes(tree.read("share/mk/bsd.opts.mk")) + default_yes(tree.read("share/mk/src.opts.mk"))
    return WorldPreset(name, small(options, frozenset(data["keep"])), leave_out)
