# SPDX-License-Identifier: BSD-2-Clause
"""Settings and fixtures of all tests."""

from __future__ import annotations

import gc
import importlib
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from hypothesis import settings

from harness.config import lab_count

ROOT = Path(__file__).parent.parent

# The machine may be busy, and no test measures time, so Hypothesis must not time its examples either.
# `make test` draws the same examples each time: a rare example must not fail an unrelated change. `make explore` draws new ones.
settings.register_profile("fxh", deadline=None, derandomize=True)
settings.register_profile("explore", deadline=None, max_examples=2000)
# A shared history of this machine must not get the runs of the tests.
os.environ["FXH_RUN_HISTORY"] = ""
# pyproject.toml says the same for this directory. It takes half a second to load, in each pytest that a test starts elsewhere.
os.environ["PYTEST_ADDOPTS"] = "-p no:labgrid"
settings.load_profile(os.environ.get("FXH_HYPOTHESIS", "fxh"))


def pytest_xdist_auto_num_workers() -> int:
    """The workers of `pytest -n auto`: most tests wait for a lab or for a process."""
    return lab_count.automatic()


def pytest_collection_finish() -> None:
    """Exempt what pytest and its plugins hold by now from garbage collection.

    Each pytest that a test runs in this process ends with several full collections, which would visit all of it each time.
    """
    gc.freeze()


def import_script(directory: str, name: str) -> ModuleType:
    """Import the script ``name`` from a directory of the project. During the import it can import the scripts beside it."""
    sys.path.insert(0, str(ROOT / directory))
    try:
        return importlib.import_module(name)
    finally:
        sys.path.pop(0)


@contextmanager
def planted_suite(cases: str) -> Iterator[Path]:
    """A suite ``planted`` with one test file that holds ``cases``, for ``fxh run`` from outside."""
    # Not below tmp_path: -k looks at the names of directories, too.
    with tempfile.TemporaryDirectory(prefix="suite-") as directory:
        file = Path(directory) / "planted" / "test_planted.py"
        file.parent.mkdir()
        file.write_text(cases)
        yield file


@pytest.fixture(scope="session")
def postgres() -> Iterator[Any]:
    """A server with PostgreSQL (tests/unit/postgres_server.py). Skips the test on a machine without it."""
    from postgres_server import running

    with running() as server:
        yield server


@dataclass(frozen=True)
class Installed:
    """The wheel in a separate virtual environment, in a directory that holds nothing else."""

    directory: Path
    environment: Mapping[str, str] = field(repr=False)

    @property
    def site(self) -> Path:
        """Where the packages are."""
        return next(self.directory.glob(".venv/lib/python3*/site-packages"))

    def run(self, *argv: str, cwd: Path | None = None, **environment: str) -> subprocess.CompletedProcess[str]:
        """Run a program of the virtual environment and return its status and output."""
        program = [str(self.directory / ".venv/bin" / argv[0]), *argv[1:]]
        where = {"cwd": cwd or self.directory, "env": {**self.environment, **environment}}
        return subprocess.run(program, stdin=subprocess.DEVNULL, capture_output=True, text=True, **where)  # type: ignore[call-overload]

    def fxh(self, *words: str, cwd: Path | None = None, **environment: str) -> str:
        """Run ``fxh``, which must succeed, and return its standard output."""
        done = self.run("fxh", *words, cwd=cwd, **environment)
        assert done.returncode == 0, (
            f"fxh {' '.join(words)}: exit code {done.returncode}\n{done.stdout[-3000:]}{done.stderr[-3000:]}"
        )
        return done.stdout


@pytest.fixture(scope="session")
def distributions(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What ``python -m build`` makes: an sdist, and a wheel from it."""
    where = tmp_path_factory.mktemp("dist")
    argv = [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(where), str(ROOT)]
    done = subprocess.run(argv, capture_output=True, text=True)
    assert done.returncode == 0, f"{done.stdout[-2000:]}{done.stderr[-2000:]}"
    return where


@pytest.fixture(scope="session")
def installed(distributions: Path, tmp_path_factory: pytest.TempPathFactory) -> Installed:
    """The wheel in a fresh virtual environment. Its dependencies are those of this Python, so no network is needed."""
    directory = tmp_path_factory.mktemp("installed")
    venv = directory / ".venv"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(venv)], check=True, capture_output=True)
    (wheel,) = distributions.glob("*.whl")
    pip = [sys.executable, "-m", "pip", "--python", str(venv / "bin/python"), "install", "--no-deps", "--no-index", "--no-compile"]
    done = subprocess.run([*pip, str(wheel)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    # A plain path in a .pth file adds the packages, but runs no .pth file there: a checkout that is installed there stays away.
    packages = [path for path in sys.path if path.endswith(("site-packages", "dist-packages"))]
    (next(venv.glob("lib/python3*/site-packages")) / "zz-dependencies.pth").write_text("\n".join(packages) + "\n")
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "FXH_", "PYTEST_"))}
    return Installed(directory, {**kept, **{name: os.environ[name] for name in ("FXH_STORE", "FXH_RUNTIME") if name in os.environ}})
