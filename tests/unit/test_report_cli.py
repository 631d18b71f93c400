# SPDX-License-Identifier: BSD-2-Clause
"""fxh report, history and compare on written runs, and the usage errors of blame, bisect and repro."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from typer.testing import CliRunner
from written import CELL, case, run, save, save_schema1

from harness import report as reporting
from harness.cli.main import make_app
from harness.errors import HarnessError, UsageError
from harness.history import FILE, History
from harness.results.model import RunResult
from harness.results.where import Where


def fxh(reports: Path, *words: str) -> tuple[int, str]:
    result = CliRunner().invoke(make_app(), [*words, "--reports", str(reports)], catch_exceptions=True)
    if isinstance(result.exception, HarnessError):
        raise result.exception
    return result.exit_code, result.stdout


def keep(reports: Path, *runs: RunResult) -> Path:
    for done in runs:
        path = save(reports, done)
        reporting.publish(path, done)
        (reports / "latest").unlink(missing_ok=True)
        (reports / "latest").symlink_to(path)
    return path


@pytest.fixture
def reports(tmp_path: Path) -> Path:
    green = [run(n, case(), case("P", "test_more")) for n in range(1, 4)]
    keep(tmp_path, *green, run(4, case("F", kernel="B"), case("P", "test_more", kernel="B"), exit_code=1))
    return tmp_path


def test_report_prints_the_verdict_and_exits_as_the_run_did(reports: Path) -> None:
    (reports / "latest" / "index.html").unlink()
    code, out = fxh(reports, "report")
    assert code == 1
    assert out.startswith("1 regression; 1 of 2 judged cases passed.\n  regression: boot/test_boot::test_boots in")
    assert (reports / "latest" / "index.html").is_file()
    assert fxh(reports, "report", "run-002")[0] == 0


def test_report_mail_is_printed_and_saved_but_not_sent(reports: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def never(*_: object) -> None:
        raise AssertionError("sent without --send")

    monkeypatch.setattr("smtplib.SMTP", never)
    code, out = fxh(reports, "report", "--mail", "--to", "freebsd-xen@example.org")
    assert code == 1
    assert out.startswith("1 regression;")
    assert "To: freebsd-xen@example.org" in (reports / "latest" / "mail.eml").read_text()
    with pytest.raises(UsageError, match="--send without --to"):
        fxh(reports, "report", "--send")


def test_repro_mail_drafts_the_mail_of_one_failure(reports: Path, tmp_path: Path) -> None:
    code, out = fxh(reports, "repro", "mail", "test_boots", "--to", "freebsd-xen@example.org")
    assert code == 0
    assert out.startswith("Subject: ")
    assert "To: freebsd-xen@example.org" in out
    assert "panic: at the disco" in out
    assert "test_more" not in out
    assert str(reports) not in out
    file = tmp_path / "draft.eml"
    assert fxh(reports, "repro", "mail", "test_boots", "-o", str(file)) == (0, "")
    assert file.read_text().startswith("Subject: ")
    with pytest.raises(UsageError, match="in which it failed"):
        fxh(reports, "repro", "mail", "test_more")


def test_report_as_json_and_against_a_named_run(reports: Path) -> None:
    data = json.loads(fxh(reports, "report", "--json")[1])
    assert data["cases"][0]["verdict"]["kind"] == "regression"
    assert "passed in run run-001" in fxh(reports, "report", "--baseline", "run-001")[1]
    assert "branch stable/14 has no judged result" in fxh(reports, "report", "--baseline", "branch:stable/14")[1]


def test_kcidb_data_needs_an_origin_and_a_directory(reports: Path, tmp_path: Path) -> None:
    file = tmp_path / "run.kcidb.json"
    code, out = fxh(reports, "report", "--kcidb", str(file), "--origin", "fxh_example")
    assert code == 1
    assert out.startswith("1 regression;")
    assert {test["origin"] for test in json.loads(file.read_text())["tests"]} == {"fxh_example"}
    for words in (["--kcidb", str(file)], ["--kcidb", str(file), "--origin", "Not-Valid"], ["--origin", "fxh_example"]):
        with pytest.raises(UsageError):
            fxh(reports, "report", *words)
    with pytest.raises(UsageError, match="No such file or directory"):
        fxh(reports, "report", "--kcidb", str(tmp_path / "nosuch" / "file"), "--origin", "fxh_example")


@pytest.mark.parametrize("words", [["run-0"], ["nosuch"], ["../../etc"], ["*"]])
def test_invalid_run_names(reports: Path, words: list[str]) -> None:
    with pytest.raises(UsageError):
        fxh(reports, "report", *words)


def test_history_of_a_case_names_changes(reports: Path) -> None:
    code, out = fxh(reports, "history", "test_boots")
    assert code == 0
    assert f"boot/test_boot::test_boots in {CELL}:  ···F" in out
    assert "run-004  failed  kernel kernel.B (BBBBBBBB)  0badcafe panic: at the disco @ vm_fault" in out
    assert len(out.splitlines()) == 3, "runs in which nothing changed have no line"
    with pytest.raises(UsageError, match="no recorded case matches 'nosuch'"):
        fxh(reports, "history", "nosuch")


def test_history_lists_runs_and_records_lost_ones(reports: Path) -> None:
    (reports / FILE).unlink()
    save(reports, run(5, case(), ended=""))
    (reports / "runs" / "run-006").mkdir()
    (reports / "runs" / "run-006" / "run.json").write_text("{")
    out = fxh(reports, "history")[1]
    assert [line.split()[0] for line in out.splitlines()] == ["run-001", "run-002", "run-003", "run-004"]
    assert "1 failed, 1 passed" in out


def test_empty_history(tmp_path: Path) -> None:
    assert fxh(tmp_path, "history") == (0, "")
    with pytest.raises(UsageError, match="no run 'latest'"):
        fxh(tmp_path, "report")


def test_compare(reports: Path) -> None:
    code, out = fxh(reports, "compare", "run-001", "run-004")
    assert code == 1
    assert "kernel: kernel.A (AAAAAAAA) -> kernel.B (BBBBBBBB)" in out
    assert f"regression: boot/test_boot::test_boots in {CELL}: passed -> failed" in out
    assert out.endswith("1 of 2 cases as before\n")
    assert fxh(reports, "compare", "run-001", "run-002")[0] == 0
    assert "fixed: boot/test_boot::test_boots" in fxh(reports, "compare", "run-004", "run-001")[1]
    with pytest.raises(UsageError, match="no run"):
        fxh(reports, "compare", "run-001", "run-009")


def test_compare_with_a_run_of_schema_1(tmp_path: Path) -> None:
    issue = "bug 1: it halts"
    old = run(1, case(), case("K", "test_known", issue=issue), case("F", "test_gone", issue=issue))
    new = run(2, case("F", kernel="B"), case("P", "test_known"), case("F", "test_gone", issue=issue))
    save_schema1(tmp_path, old)
    save(tmp_path, new)
    code, out = fxh(tmp_path, "compare", "run-001", "run-002")
    assert code == 1
    assert f"regression: boot/test_boot::test_boots in {CELL}: passed -> failed" in out
    assert f"flaky: boot/test_boot::test_known in {CELL}: failed -> passed" in out
    assert f"known issue gone: boot/test_boot::test_gone in {CELL}: passed -> passed" in out
    assert "run-001" in fxh(tmp_path, "history")[1]
    assert f"boot/test_boot::test_known in {CELL}:  F·" in fxh(tmp_path, "history", "test_known")[1]
    assert fxh(tmp_path, "report", "run-001")[1].startswith("1 known issue gone, 1 known issue;")


def test_compare_works_without_the_run_directories(reports: Path) -> None:
    import shutil

    shutil.rmtree(reports / "runs")
    assert fxh(reports, "compare", "run-001", "run-004")[0] == 1


def test_blame_dry_run_prints_the_trials(tmp_path: Path) -> None:
    import hashlib

    for name in "AB":
        (tmp_path / name).write_text(name)
    digest = {name: hashlib.sha256(name.encode()).hexdigest() for name in "AB"}
    options = {name: {"kernel": str(tmp_path / name), "type": "pvh", "guest": "freebsd"} for name in "AB"}
    inputs = {name: {"kernel": f"k sha256:{digest[name]}"} for name in "AB"}
    keep(
        tmp_path,
        run(1, case(inputs=inputs["A"]), options=options["A"]),
        run(2, case("F", inputs=inputs["B"]), options=options["B"]),
    )
    out = fxh(tmp_path, "blame", "boots", "--dry-run")[1].splitlines()
    assert out[0] == "as it failed: the same inputs"
    assert out[1] == f"all inputs of the passing run: --kernel {tmp_path / 'A'}"
    assert out[2] == f"kernel: --kernel {tmp_path / 'A'}"
    assert out[3].startswith("control guest: --guest control")
    (tmp_path / "A").write_text("replaced")
    assert "kernel:" not in fxh(tmp_path, "blame", "boots", "--dry-run")[1]
    (tmp_path / "C").write_text("C")
    assert (
        f"kernel: --kernel {tmp_path / 'C'}"
        in fxh(tmp_path, "blame", "boots", "--dry-run", "--swap", f"kernel={tmp_path / 'C'}")[1]
    )


@pytest.mark.parametrize("host", ["pv-lab", "freebsd-pvh-x"])
def test_blame_on_a_host_whose_name_looks_like_a_cell(tmp_path: Path, host: str) -> None:
    where = Where("freebsd", "hvm", host, firmware="uefi")
    options = {"image": "15.1", "guest": "freebsd", "type": "hvm,pvh", "firmware": "uefi", "xen-host": host}
    failed = case("F", cell=str(where), where=where, nodeid=f"suites/boot/test_boot.py::test_boots[{where}]")
    keep(tmp_path, run(1, failed, options=options))
    out = fxh(tmp_path, "blame", "boots", "--dry-run")[1].splitlines()
    assert out[0] == "as it failed: the same inputs"
    assert out[1].startswith("control guest: --firmware (default), --guest control, --image (default), --type pvh")


def test_blame_does_not_swap_a_rebuilt_image(tmp_path: Path) -> None:
    options = {"image": "13.2-ufs1", "guest": "freebsd"}
    keep(
        tmp_path,
        run(1, case(inputs={"image": "13.2-ufs1 aaaa"}), options=options),
        run(2, case("F", inputs={"image": "13.2-ufs1 bbbb"}), options=options),
    )
    assert "image:" not in fxh(tmp_path, "blame", "boots", "--dry-run")[1]
    swapped = fxh(tmp_path, "blame", "boots", "--dry-run", "--swap", "image=13.2-old")[1]
    assert "image: --image 13.2-old" in swapped
    assert "control guest: --guest control, --image (default)" in swapped


@pytest.mark.parametrize(
    "words",
    [
        ["blame", "test_more"],
        ["blame", "nosuch"],
        ["blame", "test_boots", "--swap", "reports=/x"],
        ["blame", "test_boots", "--good", "run-9"],
        ["bisect", "test_more", "a", "b"],
        ["bisect", "test_boots", "--source", ".", "--good", "x"],
        ["bisect", "test_boots", "a", "b", "--need", "3", "--of", "2"],
        ["bisect", "test_boots", "a", "b", "--input", "reports"],
        ["repro", "export", "test_more"],
        ["repro", "run", "/nosuch.tar.gz"],
    ],
)
def test_invalid_arguments_are_refused(reports: Path, words: list[str]) -> None:
    with pytest.raises(UsageError):
        fxh(reports, *words)


def test_bisect_without_builds_names_no_culprit(reports: Path) -> None:
    code, out = fxh(reports, "bisect", "test_boots")
    assert code == 4
    assert "at least two builds" in out


def test_two_runs_at_once_are_both_recorded(tmp_path: Path) -> None:
    """A run is part of the other's history only after it is recorded."""
    first, second = run(1, case("P", "test_a")), run(2, case("P", "test_b"))
    paths = [save(tmp_path, replace(done, ended="")) for done in (first, second)]
    reporting.publish(paths[1], second)
    reporting.publish(paths[0], first)
    assert [found.run for found in History(tmp_path / FILE).runs()] == ["run-002", "run-001"]
