# SPDX-License-Identifier: BSD-2-Clause
"""A real lab for each worker, reset before every test."""

from __future__ import annotations

import signal
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from harness.lab import factory
from harness.lab.factory import LabSpec
from harness.lab.host import LabHost
from harness.lab.lab import Lab

HERE = Path(__file__).parent

# A shell starts a background job with SIGINT ignored, and nohup with SIGHUP ignored. Processes of a test would inherit that.
for ignored, usual in ((signal.SIGINT, signal.default_int_handler), (signal.SIGHUP, signal.SIG_DFL)):
    if signal.getsignal(ignored) is signal.SIG_IGN:
        signal.signal(ignored, usual)


@pytest.fixture(scope="session")
def _lab() -> Iterator[list[Lab]]:
    labs: list[Lab] = []
    yield labs
    for lab in labs:
        lab.remove()


@pytest.fixture
def lab(_lab: list[Lab]) -> Lab:
    """A lab with an idle dom0."""
    if _lab and not _lab[0].dead:
        _lab[0].checkpoints.reset()
        return _lab[0]
    for dead in _lab:
        dead.remove()
    _lab[:] = [factory.make(LabSpec())]
    _lab[0].up()
    return _lab[0]


@pytest.fixture
def host(lab: Lab) -> LabHost:
    return LabHost(lab)


@pytest.fixture
def assemble(tmp_path: Path) -> Callable[[str], Path]:
    """Make a 32-bit PVH kernel from an assembler file of this directory."""

    def make(name: str) -> Path:
        kernel = tmp_path / name
        source = HERE / f"{name}.S"
        argv = ["cc", "-m32", "-nostdlib", "-static", "-no-pie", "-Wl,-N", "-Wl,-Ttext=0x100000", "-Wl,--build-id=none"]
        subprocess.run([*argv, "-o", str(kernel), str(source)], check=True, capture_output=True)
        return kernel

    return make
