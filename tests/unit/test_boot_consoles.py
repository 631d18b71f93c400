# SPDX-License-Identifier: BSD-2-Clause
"""New console lines in the mail, on the page and in `fxh compare --console`."""

from __future__ import annotations

from pathlib import Path

from typer.testing import CliRunner
from written import CELL, case, run

from harness.cli import main
from harness.history.store import History
from harness.report import html, mail
from harness.report.gather import gather
from harness.report.model import Report
from harness.results import model
from harness.results.model import RunResult

GOOD = b"Copyright\nxbd0: 512MB <Disk>\nlogin: "
NEW = b"Copyright\nxbd0: 512MB <Disk>\nxn0: <b>odd\nlogin: "


def written_run(reports: Path, number: int, console: bytes, word: str = "P") -> RunResult:
    """A run directory with the boot of one cell."""
    boot = case(word, "test_boots_to_login")
    result = run(number, boot)
    path = reports / "runs" / result.run
    (path / "cases" / boot.directory).mkdir(parents=True)
    (path / "cases" / boot.directory / "g.console.log").write_bytes(console)
    model.write_run(path, result)
    model.write_case(path / "cases" / boot.directory, boot)
    return result


def judged(reports: Path, *runs: RunResult) -> Report:
    history = History(reports / "history.sqlite")
    for one in runs:
        history.record(one)
    return gather(reports / "runs" / runs[-1].run, runs[-1], history)


def test_a_red_run_shows_new_lines_escaped(tmp_path: Path) -> None:
    report = judged(tmp_path, written_run(tmp_path, 1, GOOD), written_run(tmp_path, 2, NEW, "F"))
    (change,) = report.console_changes
    assert (change.cell, change.before, change.difference.appeared) == (CELL, "run-001", ("xn0: <b>odd",))
    text = mail.compose(report).get_content()
    assert f"new console lines, {CELL}" in text
    assert "| + xn0: <b>odd" in text
    page = html.render(tmp_path / "runs/run-002", report)
    assert "+ xn0: &lt;b&gt;odd" in page


def test_a_green_run_does_not(tmp_path: Path) -> None:
    assert judged(tmp_path, written_run(tmp_path, 1, GOOD), written_run(tmp_path, 2, NEW)).console_changes == ()


def test_a_missing_console_is_no_change(tmp_path: Path) -> None:
    runs = written_run(tmp_path, 1, GOOD), written_run(tmp_path, 2, NEW, "F")
    next(tmp_path.glob("runs/run-001/cases/*/g.console.log")).unlink()
    assert judged(tmp_path, *runs).console_changes == ()


def test_compare_shows_them_on_demand(tmp_path: Path) -> None:
    judged(tmp_path, written_run(tmp_path, 1, GOOD), written_run(tmp_path, 2, NEW))
    done = CliRunner().invoke(main.make_app(), ["compare", "--console", "run-001", "run-002", "--reports", str(tmp_path)])
    assert done.exit_code == 0
    assert f"boot console of {CELL}:\n  + xn0: <b>odd\n" in done.output
