# SPDX-License-Identifier: BSD-2-Clause
"""The control guest's kernel: what is asked of its configuration, and what a build says that cannot be done."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections import namedtuple
from dataclasses import replace
from pathlib import Path

import pytest
from filelock import Timeout

from harness import store as store_module
from harness.deadline import ConditionNotMet, Deadline
from harness.errors import BuildError
from harness.lab import kernel, precompiled, recipe, tools
from harness.lab.kernel import KernelRecipe, refused
from tests.processes import wait_for_end

Usage = namedtuple("Usage", "total used free")
ASKED = "# why\nCONFIG_A=y\n\nCONFIG_B=8\n# CONFIG_C is not set\n"
RECIPE = KernelRecipe("trixie", "linux-source-6.12", ASKED.encode(), compiler=b"int main(void) { return 0; }\n")


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("FXH_STORE", str(tmp_path))
    monkeypatch.setattr(tools, "missing_packages", list)
    monkeypatch.setattr(kernel.log, "disabled", True)
    return tmp_path


def tool(directory: Path, name: str, script: str) -> None:
    directory.mkdir(exist_ok=True)
    (directory / name).write_text(f"#!/bin/sh\n{script}\n")
    (directory / name).chmod(0o755)


@pytest.mark.parametrize(
    ("granted", "lacking"),
    [
        ("CONFIG_A=y\nCONFIG_B=8\nCONFIG_D=y\n", []),
        ("CONFIG_A=y\nCONFIG_B=8\n# CONFIG_C is not set\n", []),
        ("CONFIG_A=m\nCONFIG_B=8\n", ["CONFIG_A=y"]),
        ("# CONFIG_A is not set\nCONFIG_B=64\n", ["CONFIG_A=y", "CONFIG_B=8"]),
        ("CONFIG_A=y\nCONFIG_B=8\nCONFIG_C=y\n", ["# CONFIG_C is not set"]),
    ],
)
def test_a_missing_option_is_named(granted: str, lacking: list[str]) -> None:
    assert refused(ASKED, granted) == lacking


def test_the_key_depends_on_every_input() -> None:
    others = (
        replace(RECIPE, suite="sid"), replace(RECIPE, package="linux-source-6.1"), replace(RECIPE, config=b"CONFIG_A=y\n"),
        replace(RECIPE, compiler=b""), replace(RECIPE, drop=(("Kconfig", "select A"),)), replace(RECIPE, unused=("sound",)),
    )  # fmt: skip
    assert len({made.key for made in (RECIPE, *others)}) == 7
    assert replace(RECIPE, objects=7).key == RECIPE.key


def test_each_lab_has_the_same_kernel() -> None:
    assert {recipe.load(xen).control_kernel.key for xen in recipe.available()} == {recipe.load().control_kernel.key}


def test_a_source_without_an_option_and_a_build_that_fails(store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # Fake tools: this tests how their messages are reported.
    bin_ = tmp_path / "bin"
    tool(bin_, "mmdebstrap", 'for a; do case "$a" in --extract-hook=*) set -- $a; : > "$3";; esac; done')
    tool(bin_, "tar", "exit 0")
    tool(bin_, "make", 'case "$*" in *allnoconfig) echo CONFIG_B=8 > .config;; esac')
    monkeypatch.setenv("PATH", f"{bin_}{os.pathsep}{os.environ['PATH']}")
    with pytest.raises(BuildError, match="does not accept CONFIG_A=y") as caught:
        kernel.obtain(RECIPE)
    assert "kernel.config" in caught.value.hint
    tool(bin_, "make", 'env | sort; case "$*" in *allnoconfig) cp "$KCONFIG_ALLCONFIG" .config;; *) echo no rule; exit 2;; esac')
    monkeypatch.setenv("MAKEFLAGS", "-n")
    monkeypatch.setenv("ARCH", "arm64")
    with pytest.raises(BuildError, match=r"make ended with 2:(?s:.*)no rule") as caught:
        kernel.obtain(RECIPE)
    kept = (store / "control" / "last-failed-build.log").read_text()
    assert str(store / "control" / "last-failed-build.log") in caught.value.hint
    assert "MAKEFLAGS" not in kept
    assert "ARCH=" not in kept
    assert "KBUILD_BUILD_HOST=lab" in kept
    assert not [p for p in (store / "control").iterdir() if p.is_dir()]


def test_lines_and_files_of_the_source_that_the_recipe_leaves_out(
    store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tree, bin_, work = tmp_path / "linux-source-6.12", tmp_path / "bin", tmp_path / "work"
    files = {"arch/x86/Kconfig": "config X86\n\tselect HAVE_OBJTOOL\t\tif X86_64\n\tselect B\n", "sound/core.c": "", "sound/Kconfig": "",
             "sound/a/b.h": "", "net/sound/core.c": "", "kernel/fork.c": ""}  # fmt: skip
    for name, text in files.items():
        (tree / name).parent.mkdir(parents=True, exist_ok=True)
        (tree / name).write_text(text)
    subprocess.run(["tar", "-C", tmp_path, "-cJf", tmp_path / "packed", tree.name], check=True)
    tool(bin_, "mmdebstrap", f'for a; do case "$a" in --extract-hook=*) set -- $a; cp {tmp_path}/packed "$3";; esac; done')
    monkeypatch.setenv("PATH", f"{bin_}{os.pathsep}{os.environ['PATH']}")
    work.mkdir()
    source = kernel._source(replace(RECIPE, drop=(("arch/x86/Kconfig", "select HAVE_OBJTOOL"),), unused=("sound",)), work)
    assert (source / "arch/x86/Kconfig").read_text() == "config X86\n\tselect B\n"
    found = {str(path.relative_to(source)) for path in source.rglob("*") if path.is_file()}
    assert found == {"arch/x86/Kconfig", "sound/Kconfig", "net/sound/core.c", "kernel/fork.c"}


def test_a_build_in_the_background_is_awaited_and_ends_with_its_owner(store: Path, tmp_path: Path) -> None:
    """The first process owns the build and is killed; the second finds no build that runs on."""
    bin_, made, key = tmp_path / "bin", tmp_path / "made", recipe.load().control_kernel.key
    tool(bin_, "mmdebstrap", f"echo $$ > {made}.part; mv {made}.part {made}; exec sleep 600")
    code = """
import time
from harness.lab import background, recipe
background.begin_kernel(recipe.load("4.20"))
background.begin_kernel(recipe.load("4.20"))
time.sleep(600)
"""
    owner = subprocess.Popen([sys.executable, "-c", code], env={**os.environ, "PATH": f"{bin_}{os.pathsep}{os.environ['PATH']}"})
    Deadline(60).wait("the build to begin", lambda: _there(made), 0.05)
    builder = int(made.read_text())
    with pytest.raises(Timeout):
        store_module.lock(store / "control" / key, timeout=0).acquire()
    owner.kill()
    owner.wait()

    wait_for_end(builder)
    store_module.lock(store / "control" / key, timeout=60).acquire()


def _there(path: Path) -> None:
    if not path.exists():
        raise ConditionNotMet("not there")


def test_options_for_the_precompiled_header() -> None:
    line = (
        "savedcmd_init/calibrate.o := /w/kernel_cc -Wp,-MMD,init/.calibrate.o.d -nostdinc -I./include -include ./include/linux/kconfig.h "
        "-include ./include/linux/compiler_types.h -D__KERNEL__ -fmacro-prefix-map=./= -Os -pipe   -DKBUILD_MODFILE='\"init/calibrate\"' "
        "-DKBUILD_BASENAME='\"calibrate\"' -DKBUILD_MODNAME='\"calibrate\"' -D__KBUILD_MODNAME=kmod_calibrate "
        "-c -o init/calibrate.o init/calibrate.c"
    )
    assert precompiled.options_of(f"{line}\n\nsource_init/calibrate.o := init/calibrate.c\n") == [
        "-nostdinc", "-I./include", "-D__KERNEL__", "-fmacro-prefix-map=./=", "-Os", "-pipe",
    ]  # fmt: skip


def test_the_compiler_puts_the_macros_of_a_file_behind_the_precompiled_header(tmp_path: Path) -> None:
    work = tmp_path / "work"
    work.mkdir()
    compiler = precompiled.compiler(recipe.load().control_kernel.compiler, work)
    (tmp_path / "first.h").write_text('#define NAME KBUILD_MODNAME ": "\n')
    (tmp_path / "a.c").write_text('const char name[] = NAME "text";\n')
    subprocess.run(["gcc", "-O2", "first.h"], cwd=tmp_path, check=True)
    argv = ["-O2", "-Werror=invalid-pch", "-include", "first.h", '-DKBUILD_MODNAME="a_b"', "-D__KBUILD_MODNAME=kmod_a_b"]
    subprocess.run([compiler, *argv, "-c", "-o", "a.o", "a.c"], cwd=tmp_path, check=True)
    assert b"a_b: text" in (tmp_path / "a.o").read_bytes()
    direct = subprocess.run(["gcc", *argv, "-c", "-o", "b.o", "a.c"], cwd=tmp_path, capture_output=True, text=True)
    assert "not used because `KBUILD_MODNAME'" in direct.stderr, "gcc can use it directly, so this program is no longer needed"
    assert "gcc" in subprocess.run([compiler, "--version"], capture_output=True, text=True, check=True).stdout


def test_full_disk(store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda path: Usage(1 << 40, 1 << 40, 1500 << 20))
    with pytest.raises(BuildError, match=r"1500 MiB free .* needs 2048"):
        kernel.obtain(RECIPE)
    assert not [p for p in (store / "control").iterdir() if p.is_dir()]


def test_a_kernel_in_the_store_needs_no_tool(store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made, lab = store / "control" / RECIPE.key, store / "lab"
    for directory in (made, lab):
        directory.mkdir(parents=True)
    for name in kernel.FILES:
        (made / name).write_text(name)
    monkeypatch.setattr(tools, "missing_packages", lambda: ["everything"])
    kernel.install(RECIPE, lab)
    assert [(lab / name).read_text() for name in kernel.FILES] == list(kernel.FILES)
    assert sorted(path.name for path in lab.iterdir()) == sorted(kernel.FILES)
    shutil.rmtree(made)
    kernel.install(RECIPE, lab)


def test_a_lab_from_elsewhere_has_its_kernel(store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernel, "obtain", lambda recipe: pytest.fail("it is built again"))
    for name in kernel.FILES:
        (tmp_path / name).touch()
    kernel.install(RECIPE, tmp_path)
