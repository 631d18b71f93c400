# SPDX-License-Identifier: BSD-2-Clause
"""The files of an attempt that lost its host are kept, but are no evidence of the next attempt."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from harness.plugin import case_complaints, case_result, phases
from harness.plugin.state import ATTEMPT, RUN, SETUP, case_directory
from harness.report import case_timeline, evidence
from harness.results import model


@pytest.fixture
def item(tmp_path: Path) -> Any:
    config = SimpleNamespace(stash=pytest.Stash())
    config.stash[SETUP] = SimpleNamespace(take=lambda: (0.0, ""))  # type: ignore[assignment]
    config.stash[RUN] = tmp_path
    return SimpleNamespace(nodeid="suites/boot/test_x.py::test_x[pvh]", config=config, stash=pytest.Stash())


def test_a_second_attempt_begins_with_an_empty_directory(item: Any) -> None:
    directory = case_directory(item.config, item.nodeid)
    names = ("case.json", "host-serial.log", "walk.json", "guest.console.log", "guest.cfg")
    for round_ in ("first", "second"):
        for name in names:
            (directory / name).write_text(f"{round_}: WARNING: possible recursive locking detected\n")
        phases._reset(item, "no heartbeat")
    assert item.stash[ATTEMPT].lost == "no heartbeat"
    assert sorted(path.name for path in directory.iterdir()) == ["case.json", "lost"]
    files = case_result.files_of(directory)
    assert files == ("lost/guest.cfg", "lost/guest.console.log", "lost/host-serial.log", "lost/walk.json")
    assert (directory / "lost" / "walk.json").read_text().startswith("second")
    assert case_complaints.find(directory, {}) is None
    assert case_timeline.consoles(files) == []
    case = SimpleNamespace(files=files, boots=())
    assert evidence.domain_config(directory, case) == ""  # type: ignore[arg-type]
    assert model.LOST == "lost"


def test_a_first_attempt_keeps_the_files(item: Any) -> None:
    directory = case_directory(item.config, item.nodeid)
    (directory / "trace.jsonl").touch()
    phases._reset(item)
    assert case_result.files_of(directory) == ("trace.jsonl",)
