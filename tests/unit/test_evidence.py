# SPDX-License-Identifier: BSD-2-Clause
"""The evidence of a failure: hostile sizes and a full disk must not replace the finding."""

from __future__ import annotations

import logging
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from harness.deadline import Deadline
from harness.plugin import evidence
from harness.transport import Completed


class Dom0:
    """Answers each command with its words, and remembers them."""

    def __init__(self) -> None:
        self.asked: list[list[str]] = []

    def run(self, argv: list[str], deadline: Deadline | None = None, **_: Any) -> Completed:
        self.asked.append(argv)
        return Completed(tuple(argv), 0, " ".join(argv).encode(), b"")


def context(directory: Path, dom0: Dom0) -> Any:
    guest = SimpleNamespace(name="g", domid=-1, config=SimpleNamespace(type="hvm"), symbols=None)
    host = SimpleNamespace(transport=dom0, xenstore_log="/x.log", last_words=lambda *_, **__: {}, symbol_files=(), facts=None)
    return SimpleNamespace(gathered=False, host=host, guests=[guest], directory=directory, mark=None, symbols=())


def test_only_the_end_of_a_log_is_fetched(tmp_path: Path) -> None:
    dom0 = Dom0()
    evidence.gather(context(tmp_path, dom0))
    logs = [argv for argv in dom0.asked if argv[-1].startswith("/") and argv[-1].endswith(".log")]
    assert {argv[-1] for argv in logs} == {"/x.log", "/var/log/xen/xl-g.log", "/var/log/xen/qemu-dm-g.log"}
    assert all(argv[:2] == ["tail", "-c"] and int(argv[2]) <= 4 << 20 for argv in logs)


def test_a_full_disk_leaves_what_fits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    write = Path.write_bytes

    def write_bytes(path: Path, data: bytes) -> int:
        if path.name == "xl-dmesg.log":
            raise OSError(28, "No space left on device", str(path))
        return write(path, data)

    monkeypatch.setattr(Path, "write_bytes", write_bytes)
    with caplog.at_level(logging.WARNING):
        evidence.gather(context(tmp_path, Dom0()))
    assert "No space left on device" in caplog.text
    assert (tmp_path / "qemu-dm-g.log").exists()
