# SPDX-License-Identifier: BSD-2-Clause
"""Which console a client in dom0 shows."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from harness.xen import xenconsole
from harness.xen.toolstack import ConsoleKind


class Transport:
    """Keeps the command that it would run."""

    def __init__(self) -> None:
        self.argv: list[str] = []

    def open(self, argv: Sequence[str], *, pty: bool) -> Any:
        self.argv = list(argv)


@pytest.fixture
def dom0(tmp_path: Path) -> dict[str, str]:
    """The environment of a dom0 whose xl prints its arguments, and whose xenstore names a file as serial port."""
    tools = {
        "xl": 'sleep 0.3; echo "xl $*"',
        "xenstore-exists": "true",
        "xenstore-read": f'echo {tmp_path}/port; echo "noise" >&2',
        "stty": "echo noise >&2; true",
    }
    (tmp_path / "port").write_text("loader\n")
    for name, text in tools.items():
        (tmp_path / name).write_text(f"#!/bin/sh\n{text}\n")
        (tmp_path / name).chmod(0o755)
    return {"PATH": f"{tmp_path}:{os.environ['PATH']}"}


@pytest.mark.parametrize(
    ("kind", "new", "shown"),
    [
        ("pv", True, "xl console -t pv 7\n"),
        ("serial", True, "xl console -t serial 7\n"),
        ("both", True, "loader\nxl console -t pv 7\n"),
        ("both", False, "xl console -t pv 7\n"),
    ],
)
def test_a_client_shows(dom0: dict[str, str], kind: ConsoleKind, new: bool, shown: str) -> None:
    transport = Transport()
    xenconsole.attach(transport, 7, kind=kind, new=new)  # type: ignore[arg-type]
    done = subprocess.run(
        transport.argv, env=dom0, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=20, check=True
    )
    assert done.stdout == shown


def test_a_domain_without_a_serial_port_still_shows_its_pv_console(dom0: dict[str, str], tmp_path: Path) -> None:
    (tmp_path / "port").unlink()
    transport = Transport()
    xenconsole.attach(transport, 7, kind="both")  # type: ignore[arg-type]
    done = subprocess.run(transport.argv, env=dom0, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=20)
    assert done.stdout == "xl console -t pv 7\n"
