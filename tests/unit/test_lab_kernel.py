# SPDX-License-Identifier: BSD-2-Clause
"""The control guest's kernel: what is asked of its configuration, and what a build says that cannot be done."""

from __future__ import annotations

import os
import shutil
from collections import namedtuple
from dataclasses import replace
from pathlib import Path

import pytest

from harness.errors import BuildError
from harness.lab import kernel, recipe, tools
from harness.lab.kernel import KernelRecipe, refused

Usage = namedtuple("Usage", "total used free")
ASKED = "# why\nCONFIG_A=y\n\nCONFIG_B=8\n# CONFIG_C is not set\n"
RECIPE = KernelRecipe("trixie", "linux-source-6.12", ASKED.encode())


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
    others = replace(RECIPE, suite="sid"), replace(RECIPE, package="linux-source-6.1"), replace(RECIPE, config=b"CONFIG_A=y\n")
    assert len({made.key for made in (RECIPE, *others)}) == 4


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


def test_full_disk(store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda path: Usage(1 << 40, 1 << 40, 2500 << 20))
    with pytest.raises(BuildError, match=r"2500 MiB free .* needs 3072"):
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
