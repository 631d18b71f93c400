"""Results as things people and machines read: a page, allure's own files beside its results."""

from __future__ import annotations

from pathlib import Path

from harness.report import allure_files, html
from harness.results.model import RunResult


def write(path: Path, run: RunResult) -> None:
    """Write all reports of a run into its directory."""
    (path / "index.html").write_text(html.render(path, run), encoding="utf-8")
    if (path / "allure").is_dir():
        allure_files.write(path / "allure", run)
