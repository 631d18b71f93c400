# SPDX-License-Identifier: BSD-2-Clause
"""The wheel in a fresh virtual environment and an empty directory, with no checkout nearby."""

from __future__ import annotations

import json
import os
import stat
import subprocess
import sys
import tarfile
import zipfile
from email.parser import Parser
from pathlib import Path

import pytest

from harness.images import sets
from harness.results import revision
from tests.conftest import ROOT, Installed
from tests.unit.test_sets import built


def of_checkout(*words: str, store: Path) -> subprocess.CompletedProcess[str]:
    """Run ``fxh`` from the checkout."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "FXH_STORE": str(store)}
    return subprocess.run([sys.executable, "-m", "harness.cli", *words], env=environment, capture_output=True, text=True, cwd=ROOT)


def tracked(*top: str) -> dict[str, int]:
    """The files of the checkout below ``top`` with their permissions."""
    found = [path for name in top for path in (ROOT / name).rglob("*") if path.is_file() and "__pycache__" not in path.parts]
    return {str(path.relative_to(ROOT)): stat.S_IMODE(path.stat().st_mode) for path in found}


def test_the_wheel_has_the_data_with_its_permissions(installed: Installed) -> None:
    data = installed.site / "harness/_data"
    wrong = []
    for name, mode in tracked("images", "suites", "docs").items():
        copy = data / name
        if not copy.is_file() or copy.read_bytes() != (ROOT / name).read_bytes():
            wrong.append(f"{name}: missing or different")
        elif bool(mode & 0o100) != os.access(copy, os.X_OK):
            wrong.append(f"{name}: executable {not mode & 0o100}, not {bool(mode & 0o100)}")
    assert not wrong
    assert (installed.site / "harness/py.typed").is_file()
    assert (installed.site / "harness/report/templates/run.html.j2").is_file()


def test_metadata(installed: Installed, distributions: Path) -> None:
    (wheel,) = distributions.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
        (metadata,) = (name for name in names if name.endswith("/METADATA"))
        fields = Parser().parsestr(archive.read(metadata).decode())
    assert fields["License-Expression"] == "BSD-2-Clause"
    assert any(name.endswith("licenses/LICENSE") for name in names)
    assert not [name for name in names if name.startswith(("tests", "bench", "suites", "images"))], "top-level packages of others"
    assert installed.fxh("--version").split() == ["fxh", fields["Version"]]


def test_the_sdist_is_the_whole_project(distributions: Path) -> None:
    (sdist,) = distributions.glob("*.tar.gz")
    with tarfile.open(sdist) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    missing = [name for name in tracked("harness", "images", "suites", "docs", "tests", "bench", ".ci") if name not in names]
    assert not missing
    assert {"Makefile", "LICENSE", "README.md", "CHANGELOG.md", "conftest.py"} <= names


def test_suites_are_found(installed: Installed, tmp_path: Path) -> None:
    words = ("list", "--json")
    there = json.loads(installed.fxh(*words, FXH_STORE=str(tmp_path)))
    assert there == json.loads(of_checkout(*words, store=tmp_path).stdout)
    assert len({entry["suite"] for entry in there}) == len(list((ROOT / "suites").glob("*/__init__.py")))
    assert "in order" in installed.fxh("check", FXH_STORE=str(tmp_path))


def test_the_settings_of_the_users_own_project_do_not_matter(installed: Installed, tmp_path: Path) -> None:
    (installed.directory / "pyproject.toml").write_text('[tool.pytest.ini_options]\naddopts = "--no-such-option"\n')
    (installed.directory / "conftest.py").write_text("raise RuntimeError('not ours')\n")
    try:
        assert "boot " in installed.fxh("list", FXH_STORE=str(tmp_path))
    finally:
        (installed.directory / "pyproject.toml").unlink()
        (installed.directory / "conftest.py").unlink()


def test_a_run_without_cases_has_exit_code_5_and_no_warning(installed: Installed, tmp_path: Path) -> None:
    done = installed.run("fxh", "run", "boot", "-k", "no_such_case", cwd=tmp_path, FXH_STORE=str(tmp_path / "store"))
    assert done.returncode == 5, done.stdout + done.stderr
    assert "warning" not in (done.stdout + done.stderr).lower()


def test_doctor_is_the_same_as_in_a_checkout(installed: Installed, tmp_path: Path) -> None:
    said = installed.run("fxh", "doctor", FXH_STORE=str(tmp_path))
    expected = of_checkout("doctor", store=tmp_path)
    assert said.stdout.splitlines()[0]

    def comparable(text: str) -> list[str]:
        """The lines without the free space, which changes between the runs."""
        return [line for line in text.splitlines() if "MiB free" not in line]

    assert (said.returncode, comparable(said.stdout)) == (expected.returncode, comparable(expected.stdout))


def test_the_users_files_are_in_the_current_directory(installed: Installed, tmp_path: Path) -> None:
    (tmp_path / "fxh.toml").write_text("[run]\nworkers = 3\n")
    shown = installed.fxh("config", "show", cwd=tmp_path)
    (line,) = (line for line in shown.splitlines() if line.startswith("run.workers"))
    assert line.split() == ["run.workers", "=", "3", "#", str(tmp_path / "fxh.toml")]
    done = installed.run("fxh", "report", cwd=tmp_path)
    assert done.returncode == 2
    assert str(tmp_path / "reports") in done.stderr


def test_an_image_is_the_same_as_a_checkout_builds(installed: Installed, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FXH_STORE", str(tmp_path / "world"))
    mirror = sets.write(built(), tmp_path / "mirror")
    words = ("image", "build", "mine", "--dist", str(mirror))
    installed.fxh(*words, FXH_STORE=str(tmp_path / "one"))
    done = of_checkout(*words, store=tmp_path / "two")
    assert done.returncode == 0, done.stderr
    installed.fxh("image", "verify", "mine", FXH_STORE=str(tmp_path / "one"))
    names = [sorted(path.name for path in (tmp_path / store / "images").iterdir() if path.is_dir()) for store in ("one", "two")]
    assert names[0] == names[1]
    assert len(names[0]) == 1


def test_results_name_the_same_content(installed: Installed) -> None:
    code = "from harness import paths; from harness.results import revision; print(revision.of(paths.project()))"
    named = installed.run("python", "-c", code).stdout.split()
    assert named[1:3] == ["no", "commit"]
    assert named[3] == f"sha256:{revision._content(ROOT)}"


def test_a_revision_changes_with_every_kind_of_file(tmp_path: Path) -> None:
    files = [tmp_path / name for name in ("harness/a.py", "suites/boot/b.py", "images/kernels/XENA", "images/dom0/block")]
    for path in files:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("1")
    seen = {revision.of(tmp_path)}
    for path in files:
        path.write_text("2")
        seen.add(revision.of(tmp_path))
    (tmp_path / "harness/__pycache__").mkdir()
    (tmp_path / "harness/__pycache__/a.pyc").write_text("3")
    assert revision.of(tmp_path) in seen
    assert len(seen) == len(files) + 1


@pytest.mark.parametrize("words", [("matrix", "write"), ("matrix", "record", "latest")])
def test_commands_that_need_a_checkout(installed: Installed, words: tuple[str, ...]) -> None:
    done = installed.run("fxh", *words)
    assert done.returncode == 2
    assert "checkout" in done.stderr


def test_an_invalid_project_is_named(installed: Installed, tmp_path: Path) -> None:
    done = installed.run("fxh", "image", "layouts", FXH_PROJECT=str(tmp_path / "nowhere"))
    assert done.returncode == 2
    assert f"FXH_PROJECT={tmp_path / 'nowhere'}" in done.stderr
    assert installed.fxh("image", "layouts", FXH_PROJECT=str(ROOT)) == installed.fxh("image", "layouts")


def test_the_installed_command_is_of_the_installed_copy(installed: Installed) -> None:
    code = "import harness.plugin, harness.paths; print(harness.plugin.__file__); print(harness.paths.project())"
    assert installed.run("python", "-c", code).stdout.split() == [
        str(installed.site / "harness/plugin/__init__.py"),
        str(installed.site / "harness/_data"),
    ]


def test_an_editable_installation_copies_nothing(tmp_path: Path) -> None:
    """A copy of the data in site-packages would hide that of the checkout."""
    code = f"import hatchling.build as build; print(build.build_editable({str(tmp_path)!r}))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    with zipfile.ZipFile(tmp_path / done.stdout.split()[-1]) as archive:
        names = [name for name in archive.namelist() if ".dist-info/" not in name]
        assert [archive.read(name).decode().strip() for name in names] == [str(ROOT)]
