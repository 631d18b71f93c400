"""Copies there and back, holes kept."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from harness.errors import InfrastructureError
from harness.transport.local import LocalTransport


@pytest.mark.parametrize(
    "data", [b"", b"x", os.urandom(300_000), b"a" * 70_000 + bytes(3 << 20) + b"b", b"a" * 70_000 + bytes(3 << 20)]
)
def test_there_and_back(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "a").write_bytes(data)
    here = LocalTransport()
    here.put(tmp_path / "a", str(tmp_path / "it's b"))
    here.get(str(tmp_path / "it's b"), tmp_path / "c")
    assert (tmp_path / "c").read_bytes() == data
    assert (tmp_path / "it's b").stat().st_blocks * 512 <= len(data.replace(bytes(65536), b"")) + (1 << 18)


def test_no_space(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"x" * 100_000)
    with pytest.raises(InfrastructureError, match="is there space on the host"):
        LocalTransport().put(tmp_path / "a", "/dev/full/no")
