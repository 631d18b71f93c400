# SPDX-License-Identifier: BSD-2-Clause
"""tests/planted/reversals.py: the edits of a tree, and a table that names cases and words that exist."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from harness import paths
from harness.errors import BuildError, UsageError
from tests.conftest import import_script
from tests.unit.test_planted import CASES, missing

SOURCE = """\
static int helper(int a);

static int
helper(int a)
{
	if (is_valid(a)) {
		mask(a);
	}
	return (0);
}

#ifdef A
static void
twice(void)
{
	printf("no\\n");
}
#else
static void
twice(void)
{
	mask(2);
}
#endif
"""


REVERSALS = import_script("tests/planted", "reversals")


def edit(function: str, pattern: str, instead: str = "") -> object:
    return REVERSALS.Edit("driver.c", function, pattern, instead)


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    top = tmp_path / "src"
    (top / ".git").mkdir(parents=True)
    (top / "driver.c").write_text(SOURCE)
    return top


@pytest.mark.parametrize("name", REVERSALS.TABLE)
def test_a_reversal_has_a_case_and_words_of_a_failure(name: str) -> None:
    reversal = REVERSALS.TABLE[name]
    assert reversal.case.partition("[")[0] in CASES
    assert reversal.other in CASES
    assert reversal.other.partition("/")[0] != reversal.case.partition("/")[0]
    assert missing(reversal.words) == [], f"no message of the suites or the harness has the words {reversal.words!r}"
    assert re.fullmatch(r"\d+\.\d+", reversal.since)
    for one in reversal.edits:
        re.compile(one.pattern)
        assert one.file.startswith("sys/")


@pytest.mark.parametrize(
    ("function", "pattern", "instead", "wanted"),
    [("helper", r"is_valid\(a\)", "true", "if (true)"), ("twice", r"mask\((\d)\)", r"mask(1\1)", "mask(12)")],
    ids=["once", "the second of two definitions"],
)
def test_an_edit_changes_one_place(function: str, pattern: str, instead: str, wanted: str) -> None:
    before, after = SOURCE.splitlines(), REVERSALS.edited(SOURCE, edit(function, pattern, instead)).splitlines()
    changed = [(old, new) for old, new in zip(before, after, strict=True) if old != new]
    assert len(changed) == 1
    assert wanted in changed[0][1]


@pytest.mark.parametrize(
    ("function", "pattern", "error"),
    [
        ("helper", "printf", r"driver\.c, helper\(\): 0 matches of 'printf' instead of one"),
        ("helper", "a", r"driver\.c, helper\(\): \d+ matches of 'a' instead of one"),
        ("gone", "a", r"driver\.c: no definition of gone\(\)"),
        ("mask", "a", r"driver\.c: no definition of mask\(\)"),
    ],
)
def test_an_edit_that_does_not_fit_names_file_and_pattern(function: str, pattern: str, error: str) -> None:
    with pytest.raises(UsageError, match=error):
        REVERSALS.edited(SOURCE, edit(function, pattern))


def test_the_files_get_their_text_back(tree: Path) -> None:
    edits = [edit("helper", r"is_valid\(a\)", "true"), edit("twice", "mask", "unmask")]

    def work() -> str:
        text = (tree / "driver.c").read_text()
        assert "if (true)" in text
        assert "unmask(2)" in text
        raise OSError("the build failed")

    with pytest.raises(OSError, match="the build failed"):
        REVERSALS.with_edits(tree, edits, work)
    assert (tree / "driver.c").read_text() == SOURCE


def test_a_wrong_edit_changes_nothing(tree: Path) -> None:
    with pytest.raises(UsageError):
        REVERSALS.with_edits(tree, [edit("helper", r"is_valid\(a\)", "true"), edit("helper", "gone")], lambda: "built")
    assert (tree / "driver.c").read_text() == SOURCE


def test_a_copy_is_used_again_and_healed(tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    one = REVERSALS.Reversal("a bug", "14.0", (edit("helper", "a"),), "boot/test_x", "words", "a source")
    monkeypatch.setattr(REVERSALS, "TABLE", {"one": one})
    copy = REVERSALS.scratch_copy(tree, tmp_path / "work")
    assert not (copy / ".git").exists()
    untouched = (copy / "driver.c").stat().st_mtime_ns
    assert REVERSALS.scratch_copy(tree, tmp_path / "work") == copy
    assert (copy / "driver.c").stat().st_mtime_ns == untouched

    os.utime(tree / "driver.c", (1, 1))  # as after a new checkout
    REVERSALS.scratch_copy(tree, tmp_path / "work")
    assert (copy / "driver.c").stat().st_mtime_ns == untouched

    (copy / "driver.c").write_text("left by an interrupted run")
    REVERSALS.scratch_copy(tree, tmp_path / "work")
    assert (copy / "driver.c").read_text() == SOURCE

    (tree / "new.c").write_text("new")
    assert (REVERSALS.scratch_copy(tree, tmp_path / "work") / "new.c").read_text() == "new"
    assert (tree / "driver.c").read_text() == SOURCE


@pytest.mark.parametrize(("since", "version", "fits"), [("14.2", "15.1", True), ("15.0", "14.2", False), ("9.0", "14.2", True)])
def test_only_fixes_of_the_tree_are_taken_back(since: str, version: str, fits: bool) -> None:
    reversal = REVERSALS.Reversal("a bug", since, (), "boot/test_x", "words", "a source")
    assert REVERSALS.fits(reversal, version) is fits


@pytest.mark.parametrize(
    ("outcome", "reason", "other", "good", "word"),
    [
        ("failed", "it has 8 times as many", "passed", True, "caught"),
        ("failed", "another failure", "passed", False, "MISSED"),
        ("passed", "", "passed", False, "MISSED"),
        ("known", "it has 8 times as many", "passed", False, "MISSED"),
        ("failed", "it has 8 times as many", "failed", False, "ASTRAY"),
    ],
)
def test_the_verdict_on_a_reversal(outcome: str, reason: str, other: str, good: bool, word: str) -> None:
    reversal = REVERSALS.TABLE["attach-size"]
    found = {reversal.other: {"outcome": other, "reason": ""}, reversal.case: {"outcome": outcome, "reason": reason}}
    result, line = REVERSALS.judge("attach-size", found, 1.0)
    assert result is good
    assert line.startswith(word)


def test_reversals_in_one_kernel_are_judged_by_their_cases_only() -> None:
    found = {REVERSALS.TABLE["attach-size"].case: {"outcome": "failed", "reason": "it has 8 times as many"}}
    assert REVERSALS.judge("attach-size", found, 1.0, alone=False)[0]
    assert not REVERSALS.judge("attach-size", found, 1.0)[0]


def test_a_kernel_that_cannot_be_built_is_a_miss(
    tree: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails() -> str:
        raise BuildError("kernel-XENA failed")

    monkeypatch.setattr(REVERSALS, "edits_of", lambda names: [])
    assert REVERSALS.kernel_without(["attach-size"], tree, fails) == ""
    assert re.fullmatch(r"MISSED attach-size +kernel-XENA failed\n", capsys.readouterr().out)
    assert REVERSALS.kernel_without(["attach-size"], tree, lambda: "key") == "key"


def test_a_parameter_selects_less() -> None:
    score = import_script("tests/planted", "score")
    assert score.selected("test_resize[4096]") == "(test_resize and 4096)"
    assert score.selected("test_hot_plug") == "(test_hot_plug)"


def test_a_second_signal_does_not_interrupt_the_clean_up() -> None:
    """timeout(1) and a person who is in a hurry send several; the build and the runs must still be ended."""
    program = (
        "import score, time\nscore.end_on_signals()\n"
        "try:\n    print('ready', flush=True)\n    time.sleep(60)\nfinally:\n    print('ending', flush=True)\n    time.sleep(1)\n    print('cleaned up', flush=True)\n"
    )
    environment = os.environ | {"PYTHONPATH": f"{paths.project()}/tests/planted:{paths.project()}"}
    with subprocess.Popen([sys.executable, "-c", program], env=environment, stdout=subprocess.PIPE, text=True) as child:
        assert child.stdout is not None
        for line in ("ready", "ending"):
            assert child.stdout.readline() == f"{line}\n"
            child.send_signal(signal.SIGTERM)
        assert child.stdout.read() == "cleaned up\n"
        assert child.wait(30) == 128 + signal.SIGTERM
