# SPDX-License-Identifier: BSD-2-Clause
"""Compiled templates in the store."""

from __future__ import annotations

from pathlib import Path

import pytest

from harness.report import templating


@pytest.fixture(autouse=True)
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("FXH_STORE", str(tmp_path))
    return tmp_path / "templates"


def page() -> str:
    return templating.environment().get_template("site_month.html.j2").render(month="2026-12", cells=[], rows=[], top="../")


def test_a_template_is_compiled_once(store: Path) -> None:
    first = page()
    made = {file: file.stat().st_mtime_ns for file in store.iterdir()}
    assert made
    assert page() == first
    assert {file: file.stat().st_mtime_ns for file in store.iterdir()} == made


@pytest.mark.parametrize("damage", [b"", b"x" * 100])
def test_damaged_files_are_made_again(store: Path, damage: bytes) -> None:
    first = page()
    whole = {file: file.read_bytes() for file in store.iterdir()}
    for file, data in whole.items():
        file.write_bytes(data[: len(data) // 2] + damage)
    assert page() == first
    assert {file: file.read_bytes() for file in store.iterdir()} == whole


def test_a_store_that_cannot_be_written_does_not_matter(store: Path) -> None:
    first = page()
    for file in store.iterdir():
        file.unlink()
    store.rmdir()
    store.write_text("a file")
    assert page() == first
