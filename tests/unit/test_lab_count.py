# SPDX-License-Identifier: BSD-2-Clause
"""`-n 0` runs as many labs as the CPUs and the memory allow."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from harness.config import lab_count


@pytest.mark.parametrize(
    ("mib", "cpus", "labs"),
    [(24_000, 2, 4), (24_000, 1, 2), (7_000, 2, 3), (2_048, 8, 1), (100, 8, 1), (200_000, 64, 97)],
)
def test_cpus_and_memory_bound_the_labs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mib: int, cpus: int, labs: int) -> None:
    meminfo = tmp_path / "meminfo"
    meminfo.write_text(f"MemTotal:       99999999 kB\nMemFree:              1 kB\nMemAvailable:   {mib * 1024} kB\n")
    monkeypatch.setattr(os, "sched_getaffinity", lambda _pid: set(range(cpus)), raising=False)
    assert lab_count.automatic(meminfo) == labs


def test_a_system_without_meminfo_has_one_lab_for_each_cpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _pid: {0, 1, 2}, raising=False)
    assert lab_count.automatic(tmp_path / "none") == 3
