# SPDX-License-Identifier: BSD-2-Clause
"""Tests copies in both directions, with holes, and the log of commands."""

from __future__ import annotations

import logging
import os
import re
from pathlib import Path

import pytest

from harness.errors import CommandFailed, InfrastructureError
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
    with pytest.raises(InfrastructureError, match="free disk space on the host"):
        LocalTransport().put(tmp_path / "a", "/dev/full/no")


# -- what fxh -v shows ------------------------------------------------------------------------------------------------


def test_each_command_is_logged_with_its_status_and_time(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG, "fxh.trace")
    LocalTransport().run(["sh", "-c", "exit 3"], check=False)
    LocalTransport().run(["true", "x" * 1000])
    failed, long = [record.getMessage() for record in caplog.records]
    assert re.fullmatch(r"localhost sh -c 'exit 3': \d+\.\d\d s exit 3", failed)
    assert re.fullmatch(r"localhost true x{60}\.\.\.: \d+\.\d\d s ok", long)


def test_a_command_that_fails_is_logged_before_its_error(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG, "fxh.trace")
    with pytest.raises(CommandFailed):
        LocalTransport().run(["false"])
    assert [record.getMessage().partition(":")[0] for record in caplog.records] == ["localhost false"]
