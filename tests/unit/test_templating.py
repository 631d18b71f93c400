# SPDX-License-Identifier: BSD-2-Clause
"""Compiled templates in the store."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from harness.report import templating


@pytest.fixture(autouse=True)
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("FXH_STORE", str(tmp_path))
    return tmp_path / "templates"


def files(store: Path) -> list[Path]:
    return sorted(path for path in store.rglob("*") if path.is_file())


def page() -> str:
    return templating.environment().get_template("site_month.html.j2").render(month="2026-12", cells=[], rows=[], top="../")


def test_a_template_is_compiled_once(store: Path) -> None:
    first = page()
    made = {file: file.stat().st_mtime_ns for file in files(store)}
    assert made
    assert page() == first
    assert {file: file.stat().st_mtime_ns for file in files(store)} == made


@pytest.mark.parametrize(
    "damage",
    [
        lambda data: data[: len(data) // 2],
        lambda data: data[: len(data) // 2] + b"x" * 100,
        lambda data: data.replace(b"\xe3", b"T", 1),  # the code object begins with this byte; T is True
    ],
)
def test_damaged_files_are_made_again(store: Path, damage: Callable[[bytes], bytes]) -> None:
    first = page()
    whole = {file: file.read_bytes() for file in files(store)}
    for file, data in whole.items():
        file.write_bytes(damage(data))
    assert page() == first
    assert {file: file.read_bytes() for file in files(store)} == whole


def test_a_store_that_cannot_be_written_does_not_matter(store: Path) -> None:
    first = page()
    shutil.rmtree(store)
    store.write_text("a file")
    assert page() == first
