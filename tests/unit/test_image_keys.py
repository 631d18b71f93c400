# SPDX-License-Identifier: BSD-2-Clause
"""Values that enter the keys of images, worlds and kernels: a change rebuilds every entry of every user's store.

If a change of the built content is intended, raise the version constant of the module that makes it and update the value here.
"""

from __future__ import annotations

import hashlib
import inspect
import re
from pathlib import Path
from types import ModuleType

import pytest

from harness import paths
from harness.images import (
    assemble,
    buildworld,
    destdir,
    diskformat,
    diskimage,
    diskimport,
    dist,
    kernconf,
    layout,
    loader_conf_slot,
    overlay_files,
    sources,
    src_conf,
)
from harness.images.inputs import Input, combine, key_of


def test_versions_of_the_builders() -> None:
    versions = (
        assemble._BUILDER,
        buildworld.RECIPE,
        dist._UNPACKER,
        diskimport._IMPORTER,
        diskimage._READER,
        diskformat._READER,
    )
    assert versions == (4, 1, 1, 3, 1, 1)


def test_keys_depend_on_names_and_hashes_only() -> None:
    assert combine({"b": [1, "x"], "a": None}) == "7c2e4f07798c1777"
    assert key_of(Input("world", "1" * 64, "here"), Input("kernel", "2" * 64, "there")) == "57b8c8c001655908"
    assert key_of(Input("kernel", "2" * 64, ""), Input("world", "1" * 64, "")) == "57b8c8c001655908"


# Input("set base", ...
_NAME = re.compile(r'\bInput\(f?"([^"]+)"')


@pytest.mark.parametrize(
    ("module", "names"),
    [
        (assemble, ["world", "kernel", "layout", "idle rc scripts", "edits", "makefs", "image builder"]),
        (
            sources,
            [
                "source/sys",
                "source/rest",
                "src.conf",
                "compiler",
                "builder",
                "source/kernel",
                "kernel builder",
                "kernel configuration {name}",
                "source/kernel of the world",
            ],
        ),
        (dist, ["set {name}", "left out", "unpacker"]),
        (destdir, ["world"]),
        (diskimport, ["disk", "importer", "kernel", "root"]),
        (diskimage, ["disk", "root", "reader", "disk"]),
    ],
)
def test_names_of_inputs(module: ModuleType, names: list[str]) -> None:
    assert _NAME.findall(inspect.getsource(module)) == names


def test_layouts_and_the_files_that_the_builder_writes() -> None:
    keys = {name: layout.load(name).key for name in layout.available()}
    assert combine(keys) == "06ae80ca94ae15df"
    edits = {name: overlay_files.for_layout(layout.load(name), "", zfs_load=False).hash for name in layout.available()}
    assert combine(edits) == "765588e1ad0f3199"
    assert hashlib.sha256(loader_conf_slot.text({"kern.hz": "100"})).hexdigest()[:16] == "be7d0e44ef7aefa8"


def test_kernel_configurations_and_world_options() -> None:
    generic = "device\t\tahci\ndevice\t\txenpci\noptions \tSCTP\n"
    trimmed = kernconf.trim(generic, frozenset({"ahci"}), frozenset({"SCTP"}), ("device\tx",))
    assert trimmed == "# Made from this tree's GENERIC.\nnodevice\tahci\nnooptions\tSCTP\ndevice\tx\n"
    assert kernconf.KernConf("XENA", (("XENA", "text"),), "").hash[:16] == "4c1248cbb2d60361"
    assert src_conf.small(("GAMES", "ZFS"), frozenset({"GAMES"})) == "WITHOUT_GAMES=yes\n"


def test_files_that_enter_the_image_or_its_key_as_they_are() -> None:
    top = paths.project() / "images"
    files: list[Path] = [*(top / "kernels").iterdir(), *(top / "freebsd/etc").iterdir(), top / "freebsd/loader.conf"]
    assert combine({path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in files}) == "fdc554beb5029621"
