# SPDX-License-Identifier: BSD-2-Clause
"""New complaints: from the console of a case into the history, the mail, the page and the JSON."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import jsonschema
import pytest
from written import CELL, case, run

from harness.history.damage import salvage
from harness.history.store import History
from harness.plugin import case_complaints, session
from harness.report import html, machine, mail
from harness.report.gather import gather
from harness.report.model import Report
from harness.results import model
from harness.results.model import ComplaintRecord, KnownIssueMatch, RunResult

REVERSAL = ComplaintRecord(
    "lock order reversal",
    "guest",
    "lock order reversal:",
    "lock order reversal: xbd / xn",
    (" 1st 0x1 xbd (xbd, sleep mutex) @ a.c:1",),
)
WARNING = ComplaintRecord("kernel warning", "guest", "WARNING: <script>", "kernel warning: WARNING: <script>")
KNOWN = replace(REVERSAL, known_issue=KnownIssueMatch("bug 1", "harmless <b>"))
ROOT = Path(__file__).parents[2]


def judged(tmp_path: Path, *runs: RunResult) -> Report:
    history = History(tmp_path / "h.sqlite")
    for one in runs:
        history.record(one)
    return gather(tmp_path, runs[-1], history)


def test_only_a_complaint_that_the_cell_never_had_is_new(tmp_path: Path) -> None:
    found = judged(
        tmp_path,
        run(1, case(complaints=(WARNING,)), case(name="test_b")),
        run(2, case(complaints=(WARNING, REVERSAL)), case(name="test_b", complaints=(REVERSAL,))),
    )
    (new,) = found.complaints
    assert new.complaint == REVERSAL
    assert new.cell == CELL
    assert {one.case for one in new.cases} == {"test_boots", "test_b"}


def test_the_first_run_of_a_cell_has_no_baseline(tmp_path: Path) -> None:
    other = "freebsd-hvm-xen-4.20"
    found = judged(tmp_path, run(1, case()), run(2, case(cell=other, complaints=(REVERSAL,))))
    assert found.complaints == ()


def test_a_run_that_searched_no_console_is_no_baseline(tmp_path: Path) -> None:
    """A skipped case, one without a verdict, or a run of an older harness."""
    assert judged(tmp_path, run(1, case("S")), run(2, case(complaints=(REVERSAL,)))).complaints == ()


def test_a_damaged_history_keeps_the_baseline(tmp_path: Path) -> None:
    history = History(tmp_path / "h.sqlite")
    history.record(run(1, case(complaints=(REVERSAL,)), case(name="test_b", complaints=())))
    found = {
        case.cell: case.complaints for one in salvage(tmp_path / "h.sqlite") for case in one.cases if case.complaints is not None
    }
    assert [one.identity for one in found[CELL] or ()] == [REVERSAL.identity]


def test_a_complaint_that_went_away_and_came_back_is_not_new(tmp_path: Path) -> None:
    found = judged(tmp_path, run(1, case(complaints=(REVERSAL,))), run(2, case()), run(3, case(complaints=(REVERSAL,))))
    assert found.complaints == ()


def test_mail_page_and_json_show_it_escaped(tmp_path: Path) -> None:
    found = judged(tmp_path, run(1, case(complaints=())), run(2, case(complaints=(REVERSAL, WARNING))))
    text = mail.compose(found).get_content()
    assert "new complaints" in text
    assert "| lock order reversal:" in text
    assert "|  1st 0x1 xbd (xbd, sleep mutex) @ a.c:1" in text
    page = html.render(tmp_path, found)
    assert "New complaints" in page
    assert "<script>" not in page
    data = json.loads(machine.render(found))
    jsonschema.validate(data, json.loads((ROOT / "docs/report.schema.json").read_text()))
    assert {item["identity"] for item in data["complaints"]} == {REVERSAL.identity, WARNING.identity}


def test_a_known_complaint_is_shown_with_its_reason_and_is_no_news(tmp_path: Path) -> None:
    found = judged(tmp_path, run(1, case(complaints=())), run(2, case(complaints=(KNOWN,))))
    assert found.complaints == ()
    (known,) = found.known_complaints
    assert (known.complaint, known.cell) == (KNOWN, CELL)
    text = mail.compose(found).get_content()
    assert "known complaints" in text
    assert "bug 1: harmless" in text
    assert "new complaints" not in text
    page = html.render(tmp_path, found)
    assert "known issue: bug 1: harmless &lt;b&gt;" in page
    assert "New complaints" not in page
    data = json.loads(machine.render(found))
    jsonschema.validate(data, json.loads((ROOT / "docs/report.schema.json").read_text()))
    (item,) = data["known_complaints"]
    assert item["known_issue"] == {"bug": "bug 1", "why": "harmless <b>", "gone": False}


def test_a_complaint_is_news_after_its_entry_is_removed(tmp_path: Path) -> None:
    found = judged(tmp_path, run(1, case(complaints=(KNOWN,))), run(2, case(complaints=(REVERSAL,))))
    assert [one.complaint for one in found.complaints] == [REVERSAL]


def test_a_result_keeps_its_complaints_on_disk(tmp_path: Path) -> None:
    written = run(1, case(complaints=(KNOWN, WARNING)))
    (tmp_path / "cases/a").mkdir(parents=True)
    model.write_run(tmp_path, written)
    model.write_case(tmp_path / "cases/a", written.cases[0])
    (again,) = model.read_run(tmp_path).cases
    assert again.complaints == (KNOWN, WARNING)
    data = json.loads((tmp_path / "cases/a/case.json").read_text())
    jsonschema.validate(data, json.loads((ROOT / "docs/schema/case-2.json").read_text()))


def test_a_hostile_console_makes_no_large_result(tmp_path: Path) -> None:
    (tmp_path / "one.console.log").write_bytes(b"WARNING: x\n" * 11 + b"#1 " + b"\x01" * 131072 + b"\n")
    (tmp_path / "two.console.log").write_bytes(b"".join(b"xbd0: Error %s\n" % (b"x" * n) for n in range(1, 999)))
    found = case_complaints.find(tmp_path, {}) or ()
    assert len(found) <= 201
    assert sum(len(line) for one in found for line in (one.message, *one.detail)) < 200_000


def test_consoles_of_a_case_are_searched(tmp_path: Path) -> None:
    (tmp_path / "one.console.log").write_bytes(b"xbd0: \x1b[1mError 5\r\nlogin: ")
    (tmp_path / "two.console.log").write_bytes(b"xbd1: Error 6\r\nxbd2: Error 7\r\n")
    (found,) = case_complaints.find(tmp_path, {}) or ()
    assert (found.kind, found.count) == ("device error", 3)


@pytest.mark.parametrize(
    ("seen", "fail_on", "code"), [(REVERSAL, (), 0), (REVERSAL, ("complaint",), 1), (KNOWN, ("complaint",), 0)]
)
def test_a_new_complaint_fails_the_run_on_request(
    tmp_path: Path, seen: ComplaintRecord, fail_on: tuple[str, ...], code: int
) -> None:
    runs = tmp_path / "runs"
    for number, found in ((1, ()), (2, (seen,))):
        written = run(number, case(complaints=found))  # type: ignore[arg-type]
        path = runs / written.run
        (path / "cases/a").mkdir(parents=True)
        model.write_run(path, written)
        model.write_case(path / "cases/a", written.cases[0])
        session._publish(path, lambda cases: 0, fail_on)
    assert [model.read_run(runs / name).exit_code for name in ("run-001", "run-002")] == [0, code]
    report = json.loads((runs / "run-002/report.json").read_text())
    assert report["exit_code"] == code
    assert ("The run fails: 1 new complaint (--fail-on)." in report["sentence"]) == bool(code)
    assert [row.exit_code for row in History(tmp_path / "history.sqlite").runs()] == [0, code]
