# SPDX-License-Identifier: BSD-2-Clause
"""The second build of a kernel runs only the make of its object directory."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from harness.errors import BuildError
from harness.images import treescan
from harness.images.buildworld import BuildDirectory
from harness.images.hosttools import Compiler
from harness.images.kernconf import KernConf
from harness.images.kernelmake import Recorder
from harness.images.srctree import SourceTree

# The first make calls the second one as Makefile.inc1 does, with the descriptors of its job server.
BMAKE = """#!/bin/sh
echo "$*" >> {calls}
case " $* " in
*" buildkernel "*)
	for word; do case $word in MAKE=*) make=${{word#MAKE=}};; esac; done
	mkdir -p {objects} && cd {objects}
	export MAKE="$make" MAKEFLAGS=" -j 2 -J 15,16 -D X CONF_CFLAGS=-a\\\\ -b MAKE=$make" CC="cc -target x"
	exec "$make" -j 2 -J 15,16 -m "a b" KERNEL=kernel all
	;;
*" KERNEL=kernel all "*)
	echo "$MAKEFLAGS|$MAKE|$CC|$PWD" > {calls}.environment
	grep -q error {source} && printf -- "--- a.o ---\\n/s/a.c:1:2: error: bad\\n*** [a.o] Error code 1\\n" && exit 1
	cp {source} kernel
	;;
esac
"""
CONF = KernConf("XENA", (), "nowhere")


@pytest.fixture
def build(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> BuildDirectory:
    monkeypatch.setenv("FXH_STORE", str(tmp_path / "store"))
    make_py = tmp_path / "src/tools/build/make.py"
    make_py.parent.mkdir(parents=True)
    make_py.write_text(
        "import os, sys\nmake = os.environ['MAKEOBJDIRPREFIX'] + '/bmake-install/bin/bmake'\nos.execv(make, [make, *sys.argv[1:]])\n"
    )
    (tmp_path / "src/kernel.c").write_text("one")
    tree = SourceTree(tmp_path / "src", "13.2", "RELEASE")
    found = BuildDirectory(tree, Compiler(Path("/usr/bin"), "clang 14"), "", "small", 3, treescan.scan(tree.path))
    make = found.directory / "obj/bmake-install/bin/bmake"
    make.parent.mkdir(parents=True)
    make.write_text(BMAKE.format(calls=tmp_path / "calls", objects=found.objects / "sys/XENA", source=tmp_path / "src/kernel.c"))
    make.chmod(0o755)
    return found


def kernel(build: BuildDirectory, tmp_path: Path, content: str) -> list[str]:
    """Build a kernel of ``content``; returns the calls of make."""
    (tmp_path / "src/kernel.c").write_text(content)
    (tmp_path / "calls").write_text("")
    with build.open():
        assert build.kernel(CONF).read_text() == content
    return (tmp_path / "calls").read_text().splitlines()


def test_only_the_last_make_runs_again(build: BuildDirectory, tmp_path: Path) -> None:
    first, second = kernel(build, tmp_path, "one")
    assert " buildkernel KERNCONF=XENA " in first
    assert second == "-j 2 -J 15,16 -m a b KERNEL=kernel all"
    assert kernel(build, tmp_path, "two") == ["-j 3 -m a b KERNEL=kernel all"]
    make = build.directory / "obj/bmake-install/bin/bmake"
    objects = build.objects / "sys/XENA"
    assert (tmp_path / "calls.environment").read_text() == f"-j 3 -D X CONF_CFLAGS=-a\\ -b|{make}|cc -target x|{objects}\n"


def test_an_error_is_explained_by_the_whole_build(build: BuildDirectory, tmp_path: Path) -> None:
    kernel(build, tmp_path, "one")
    with pytest.raises(BuildError, match=r"kernel-XENA failed:\n  /s/a.c:1:2: error: bad"):
        kernel(build, tmp_path, "error")
    assert len(kernel(build, tmp_path, "two")) == 2
    assert len(kernel(build, tmp_path, "three")) == 1


def test_other_tools_or_options_need_the_whole_build(build: BuildDirectory, tmp_path: Path) -> None:
    kernel(build, tmp_path, "one")
    with build.open():
        build.toolchain("another hash")
    assert len(kernel(build, tmp_path, "two")) == 2
    (build.objects / "sys/.XENA.configured").write_text("another configuration")
    assert len(kernel(build, tmp_path, "three")) == 2


def test_a_copied_store_does_not_build_in_the_old_one(
    build: BuildDirectory, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kernel(build, tmp_path, "one")
    shutil.copytree(tmp_path / "store", tmp_path / "copy")
    monkeypatch.setenv("FXH_STORE", str(tmp_path / "copy"))
    make = build.directory / "obj/bmake-install/bin/bmake"
    make.write_text(make.read_text().replace(f"{tmp_path}/store", f"{tmp_path}/copy"))
    assert len(kernel(build, tmp_path, "two")) == 2
    assert len(kernel(build, tmp_path, "three")) == 1


@pytest.mark.parametrize("left", [(), ("arguments",), ("arguments", "environment")])
def test_an_incomplete_record_is_no_call(tmp_path: Path, left: tuple[str, ...]) -> None:
    (tmp_path / "call").mkdir()
    for name in left:
        (tmp_path / "call" / name).write_text("x\0")
    assert Recorder(tmp_path, Path("/bin/true")).call(2) is None
