# SPDX-License-Identifier: BSD-2-Clause
"""Errors of a lab's build: their messages, and that they leave no files."""

from __future__ import annotations

import json
import shutil
from collections import namedtuple
from pathlib import Path
from types import SimpleNamespace

import pytest

from harness.errors import BuildError
from harness.lab import build, recipe, tools
from harness.lab.store import LabImage

Usage = namedtuple("Usage", "total used free")


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("FXH_STORE", str(tmp_path))
    monkeypatch.setattr(build.log, "disabled", True)
    return tmp_path


def leftovers(store: Path) -> list[str]:
    return [p.name for p in (store / "labs").iterdir() if ".making-" in p.name or (p / "manifest.json").is_file()]


def test_full_disk(store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tools, "missing_packages", list)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: Usage(1 << 40, 1 << 40, 300 << 20))
    with pytest.raises(BuildError, match="300 MiB free") as caught:
        build.build(recipe.load())
    assert "FXH_STORE" in caught.value.hint
    assert leftovers(store) == []


@pytest.mark.parametrize(
    ("text", "good"),
    [("fxh:100000:65536\n", True), ("a:1:2\n1234:100000:65536\n", True), ("fxh2:1:65536\n12345:1:2\n", False), ("", False)],
)
def test_a_build_without_root_needs_subordinate_ids(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str, good: bool) -> None:
    monkeypatch.setattr("os.geteuid", lambda: 1234)
    monkeypatch.setattr("pwd.getpwuid", lambda uid: SimpleNamespace(pw_name="fxh"))
    monkeypatch.setattr("shutil.which", lambda name, path=None: None)
    assert "uidmap" in tools.missing_packages()
    (tmp_path / "subuid").write_text(text)
    if good:
        tools.require_ids([tmp_path / "subuid"])
    else:
        with pytest.raises(BuildError, match=r"user fxh has no subordinate ids.*\n  hint: .*usermod --add-subuids .* fxh"):
            tools.require_ids([tmp_path / "subuid"])
    with pytest.raises(BuildError):
        tools.require_ids([tmp_path / "none"])


def test_missing_tools_are_named_in_one_command(store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = shutil.which
    monkeypatch.setattr(shutil, "which", lambda name, **more: None if name == "mmdebstrap" else found(name, **more) or "/bin/true")
    with pytest.raises(BuildError) as caught:
        build.build(recipe.load())
    assert caught.value.hint == "apt-get install --no-install-recommends mmdebstrap"


def test_a_failing_tool_is_shown_by_its_last_lines(store: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    failing = tmp_path / "bin"
    failing.mkdir()
    for name in tools.TOOLS:
        (failing / name).write_text("#!/bin/sh\necho no space left on device >&2\nexit 3\n")
        (failing / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{failing}:/usr/bin:/bin")
    with pytest.raises(BuildError, match="ended with 3") as caught:
        build.build(recipe.load())
    assert "no space left on device" in caught.value.message
    assert (store / "labs" / "last-failed-build.log").is_file()
    assert leftovers(store) == []


@pytest.mark.parametrize("harm", ["cut", "gone", "manifest"])
def test_a_damaged_image_is_noticed(tmp_path: Path, harm: str) -> None:
    (tmp_path / "xen").write_bytes(b"x" * 100)
    (tmp_path / "manifest.json").write_text(json.dumps({"sizes": {"xen": 100}}))
    assert LabImage(tmp_path).damage() == ""
    match harm:
        case "cut":
            (tmp_path / "xen").write_bytes(b"x" * 99)
            assert LabImage(tmp_path).damage() == "xen has 99 bytes instead of 100"
        case "gone":
            (tmp_path / "xen").unlink()
            assert LabImage(tmp_path).damage() == "xen is missing"
        case "manifest":
            (tmp_path / "manifest.json").write_text("{")
            assert "cannot be read" in LabImage(tmp_path).damage()
