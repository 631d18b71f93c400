# SPDX-License-Identifier: BSD-2-Clause
"""The cache of the trial of KVM."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

import pytest

from harness.lab import accel, probed
from harness.lab.accel import Accel


@pytest.mark.parametrize(
    ("first", "days", "second"),
    [("kvm", 30, "kvm"), ("tcg", 0.9, "tcg"), ("tcg", 1.1, "kvm")],
    ids=["a success stays", "a failure stays for a day", "then it is tried again"],
)
def test_a_failed_trial_counts_for_a_day(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, first: str, days: float, second: str
) -> None:
    monkeypatch.setattr(probed.paths, "store", lambda: tmp_path)
    monkeypatch.setattr(accel.os, "access", lambda path, mode: True)
    monkeypatch.setattr(accel.Path, "exists", lambda self: True)
    qemu: Any = type("Qemu", (), {"label": "QEMU 10.0"})()
    results = [Accel(first, "the first trial"), Accel("kvm", "the second trial")]
    monkeypatch.setattr(accel, "_probe", lambda qemu: results.pop(0))
    assert accel.choose(qemu).name == first
    past = time.time() - days * 86400
    os.utime(tmp_path / "KVM.json", (past, past))
    assert accel.choose(qemu).name == second
