# SPDX-License-Identifier: BSD-2-Clause
"""The name under which a restricted pygrub finds its disk, created by a real shell."""

from __future__ import annotations

import os
import stat
import subprocess
from pathlib import Path

import pytest

from harness.xen import pygrub


def readable(disk: Path | str, node: Path) -> subprocess.CompletedProcess[str]:
    script = f'umask 077; {pygrub.READABLE} readable "$1" "$2"'
    return subprocess.run(["sh", "-c", script, "sh", str(disk), str(node)], capture_output=True, text=True, check=False)


def test_a_file(tmp_path: Path) -> None:
    disk, node = tmp_path / "disk", tmp_path / "node"
    disk.write_bytes(b"x")
    disk.chmod(0o600)
    # A restarted guest finds the link of its first boot.
    node.symlink_to("/nowhere")
    assert readable(disk, node).returncode == 0
    assert node.resolve() == disk
    assert disk.stat().st_mode & stat.S_IROTH


def test_a_missing_disk(tmp_path: Path) -> None:
    done = readable(tmp_path / "none", tmp_path / "node")
    assert done.returncode != 0
    assert "none" in done.stderr


def test_a_block_device(tmp_path: Path) -> None:
    """The node in /dev does not change. A link (a logical volume) leads to the device."""
    found = next((path for path in Path("/dev").iterdir() if path.is_block_device()), None)
    if found is None or os.geteuid() != 0:
        pytest.skip("needs root and a block device; elsewhere: pytest tests/faults")
    link, node, before = tmp_path / "volume", tmp_path / "node", found.stat()
    link.symlink_to(found)
    readable(link, node)
    assert node.is_block_device()
    assert node.stat().st_rdev == before.st_rdev
    assert stat.S_IMODE(node.stat().st_mode) == 0o644
    assert found.stat().st_mode == before.st_mode
