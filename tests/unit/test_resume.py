# SPDX-License-Identifier: BSD-2-Clause
"""The command line of a resumed run, and the commands printed for a kept guest."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from harness.cli import run as verb
from harness.cli import run_lookup
from harness.errors import UsageError
from harness.hosts.access import Access
from harness.plugin import hold_guest
from harness.results import model
from harness.results.model import RunResult


@pytest.mark.parametrize(
    ("words", "bare"),
    [
        ([], True),
        (["--resume", "latest"], True),
        (["--resume=latest", "--reports", "/x"], True),
        (["boot", "--resume", "latest"], False),
        (["--resume", "latest", "--type", "pv"], False),
        (["--type=pv"], False),
    ],
)
def test_whether_a_command_line_only_names_the_run(words: list[str], bare: bool) -> None:
    assert verb._only_names_run(words) is bare


def test_the_run_s_own_command_line_is_repeated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "runs" / "r1"
    path.mkdir(parents=True)
    model.write_run(path, RunResult("r1", "2026", command="fxh run boot -k 'a or b' --type pv"))
    (tmp_path / "latest").symlink_to("runs/r1")
    for name in ("r1", str(path), "latest"):
        assert run_lookup.run_directory(tmp_path, name) == path
    with pytest.raises(UsageError, match="no run 'r2'"):
        run_lookup.run_directory(tmp_path, "r2")

    monkeypatch.setattr(sys, "argv", ["fxh", "run", "--resume", "r1"])
    assert verb._resume_words(path) == ["run", "boot", "-k", "a or b", "--type", "pv", "--resume", str(path)]
    monkeypatch.setattr(sys, "argv", ["fxh", "run", "boot", "--resume", "r1"])
    assert verb._resume_words(path) is None, "the command line selects cases itself"
    monkeypatch.setattr(sys, "argv", ["fxh", "run", "--resume", "r1"])
    model.write_run(path, RunResult("r1", "2026", command="fxh run --reports /x"))
    assert verb._resume_words(path) is None, "there is nothing to add"


def test_the_commands_to_attach() -> None:
    place = Access("ssh xen1", "--xen-host xen1", "/var/lib/fxh/run-ab")
    text = hold_guest.commands(place, "fxh-ab-1-x", 7, {"xenctx": "/usr/lib/xen-4.20/bin/xenctx"}, "12:00 UTC")
    assert text.splitlines() == [
        "fxh-ab-1-x (domain 7) is kept, paused, until 12:00 UTC:",
        "  console    fxh console fxh-ab-1-x --xen-host xen1",
        "  vCPUs      ssh xen1 /usr/lib/xen-4.20/bin/xenctx -a 7",
        "  continue   ssh xen1 xl unpause 7",
        "  core dump  ssh xen1 xl dump-core 7 /var/lib/fxh/run-ab/fxh-ab-1-x.core",
    ]
    here = hold_guest.commands(Access("", "--xen-host local", "/d"), "n", 7, {}, "x")
    assert "  continue   xl unpause 7" in here


@pytest.mark.parametrize(("aid", "offered"), [("gdbsx", True), ("gdbsx-off", False)])
def test_gdbsx_is_offered_only_if_xen_answers_it(aid: str, offered: bool) -> None:
    text = hold_guest.commands(Access("", "", "/d"), "n", 7, {aid: "/usr/sbin/gdbsx"}, "x")
    assert ("  debugger   /usr/sbin/gdbsx -a 7 64 9999" in text) == offered
    assert ("gdbsx" in text) == offered
