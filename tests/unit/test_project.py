# SPDX-License-Identifier: BSD-2-Clause
"""The metadata of the project: license, version, dependencies, CI and links."""

from __future__ import annotations

import ast
import importlib.metadata
import re
import sys
import tomllib
from pathlib import Path

import pytest
import yaml

import harness
from harness.cli import run_lookup
from tests.conftest import ROOT

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
# pytest loads these without an import of the harness: for `fxh run -n` and for --alluredir.
PLUGINS = {"pytest-xdist", "allure-pytest"}


def canonical(name: str) -> str:
    """The name of a distribution, normalized as in PEP 503."""
    return re.sub(r"[-_.]+", "-", name).lower()


def imported(*top: str) -> set[str]:
    """The first part of each package name that the sources below ``top`` import; ``qemu`` is a namespace package."""
    found = set()
    for path in (file for name in top for file in (ROOT / name).rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                found |= {name.name.partition(".")[0] for name in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
                found.add(node.module.partition(".")[0])
    return found - set(sys.stdlib_module_names) - {"harness", "suites"}


def test_each_dependency_is_imported_and_each_import_is_a_dependency() -> None:
    providers = importlib.metadata.packages_distributions()
    extras = PROJECT["optional-dependencies"]
    lines = [*PROJECT["dependencies"], *extras["labgrid"], *extras["postgresql"]]
    declared = {canonical(re.split(r"[<>=!~ \[]", line)[0]) for line in lines}
    used, missing = set(), set()
    for name in imported("harness", "suites"):
        owners = {canonical(owner) for owner in providers.get(name, [name])}
        used |= owners & declared
        if not owners & declared:
            missing.add(name)
    assert not missing, f"imported, but not a dependency: {missing}"
    assert declared - used - PLUGINS == set(), "a dependency that nothing imports"


def test_the_version_is_the_same_everywhere() -> None:
    released = re.findall(r"^## \[(\d[^\]]*)\] - \d{4}-\d\d-\d\d$", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert harness.__version__ == PROJECT["version"] == released[0]
    assert released == sorted(released, key=lambda text: [int(part) for part in text.split(".")], reverse=True)


def test_the_license_is_the_declared_one() -> None:
    text = (ROOT / "LICENSE").read_text()
    assert text.startswith("BSD 2-Clause License")
    assert "The freebsd-xen-harness authors" in text
    assert PROJECT["license"] == "BSD-2-Clause"


def test_the_workflow_runs_what_a_developer_runs() -> None:
    (file,) = (ROOT / ".github/workflows").iterdir()
    flow = yaml.safe_load(file.read_text())
    commands = [step["run"] for job in flow["jobs"].values() for step in job["steps"] if "run" in step]
    assert commands == [".ci/run"]
    assert (ROOT / ".ci/run").stat().st_mode & 0o111


def test_the_issue_template_asks_for_an_exported_failure() -> None:
    form = yaml.safe_load((ROOT / ".github/ISSUE_TEMPLATE/bug.yml").read_text())
    fields = {field["id"]: field for field in form["body"] if "id" in field}
    assert "fxh repro export" in fields["repro"]["attributes"]["description"]
    assert fields["repro"]["validations"]["required"]
    assert len(fields) == len({field["attributes"]["label"] for field in fields.values()})


def test_the_page_on_architecture_shows_the_layers_that_are_checked() -> None:
    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"]
    (layers,) = (contract for contract in contracts if contract["type"] == "layers")
    shown = (ROOT / "docs/architecture.md").read_text().split("```")[1].split("\n")
    assert [line for line in shown if line] == layers["layers"]
    assert layers["exhaustive"]


def test_the_page_on_architecture_names_what_exists() -> None:
    text = (ROOT / "docs/architecture.md").read_text()
    packages = {path.name for path in (ROOT / "harness").iterdir() if (path / "__init__.py").is_file()}
    table = set(re.findall(r"`(\w+)`", "".join(line.partition(" | ")[0] for line in text.splitlines() if line.startswith("| `"))))
    assert packages <= table
    # `console.reader`, `hosts/pool` and `tests/unit/toy_os.py` in the text, plugin/worker_env in the diagram of the data
    words = [*re.findall(r"`([\w./]+)`", text), *re.findall(r"\w+/\w+", text.split("```")[3])]
    for word in {word for word in words if re.search(r"\w[./]", word)} - {"case.json", "base.py"}:
        path = word if re.search(r"\.(py|toml)$", word) else word.replace(".", "/")
        assert any((top / name).exists() for top in (ROOT, ROOT / "harness") for name in (path, f"{path}.py")), word


def test_fxh_runs_the_suites_with_the_settings_of_plain_pytest(tmp_path: Path) -> None:
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["pytest"]["ini_options"]
    words = run_lookup.pytest_root(tmp_path, tmp_path)
    assert [word for word in settings["addopts"] if word not in words] == []
    assert "xfail_strict=true" in words
    assert settings["xfail_strict"] is True


@pytest.mark.parametrize("name", ["README.md", "CONTRIBUTING.md", "SECURITY.md", "CHANGELOG.md"])
def test_links_to_files_are_valid(name: str) -> None:
    links = re.findall(r"\]\((?!https?:|#)([^)#]+)", (ROOT / name).read_text())
    assert not [link for link in links if not Path(ROOT / link).exists()]


@pytest.mark.parametrize("name", ["README.md", "CONTRIBUTING.md"])
def test_every_make_target_exists(name: str) -> None:
    targets = {line.partition(":")[0] for line in (ROOT / "Makefile").read_text().splitlines() if re.match(r"[a-z]+:", line)}
    assert set(re.findall(r"(?:`|^    )make ([a-z]+)", (ROOT / name).read_text(), re.MULTILINE)) <= targets


def test_test_files_have_unique_names() -> None:
    """Without packages, pytest imports test files by base name and rejects a duplicate."""
    names = [path.name for path in (ROOT / "tests").rglob("test_*.py")]
    assert sorted(name for name in set(names) if names.count(name) > 1) == []
