# SPDX-License-Identifier: BSD-2-Clause
"""The static pages of all runs: what they show, what a second build writes, and what a killed build leaves."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from urllib.parse import unquote

import filelock
import pytest
from test_report import HOSTILE, Strict
from test_report_cli import fxh
from written import CELL, case, run, save

from harness.errors import InfrastructureError, UsageError
from harness.history import FILE, History
from harness.report import site, site_data, site_files
from harness.report.site_data import Summary
from harness.results.model import Outcome, RunResult

OTHER = "freebsd-hvm-uefi-xen1"
BUG = "FreeBSD bug 1: it is so"


def night(number: int, *words: str, branch: str = "main", **more: object) -> RunResult:
    """A run of a night in both cells; ``words`` are the outcomes in the first one."""
    cases = []
    for cell in (CELL, OTHER):
        for n, word in enumerate(words if cell == CELL else "P"):
            issue = BUG if word == "K" else ""
            host = {"kernel": "k sha256:" + "A" * 64, "host": f"host-{cell[-4:]}"}
            reason = {"I": {"reason": "ssh: it hangs"}}.get(word, {})
            cases.append(case(word, f"test_{n}", cell=cell, issue=issue, inputs=host, **reason))
        boots = case("P", "test_boots_to_login", cell=cell, metrics={"throughput, MiB/s": 100.0 + number})
        cases.append(boots)
    day = f"2026-{9 + number // 28:02}-{1 + number % 28:02}"
    name = f"{day.replace('-', '')}T010000Z-{number:04}"
    return run(number, *cases, **{"run": name, "started": f"{day}T01:00:00Z", "ended": f"{day}T02:00:00Z", "branch": branch} | more)


@pytest.fixture
def reports(tmp_path: Path) -> Path:
    """Four nights on two branches. Only the last one still has its directory."""
    history = History(tmp_path / FILE)
    nights = [night(0, "P", "K", "I"), night(1, "F", "K", branch="stable/15"), night(2, "P", "P"), night(30, "P", "K")]
    for done in nights:
        history.record(done)
    save(tmp_path, nights[-1])
    (tmp_path / "runs" / nights[-1].run / "index.html").write_text("the page")
    return tmp_path


def pages(directory: Path) -> dict[str, str]:
    return {str(file.relative_to(directory)): file.read_text() for file in directory.rglob("*.html")}


def check_links(found: dict[str, str], directory: Path) -> None:
    for name, text in found.items():
        for link in re.findall(r'href="([^"#]+)"', text):
            assert (directory / name).parent.joinpath(unquote(link)).resolve().is_file(), (name, link)


# -- content ----------------------------------------------------------------------------------------------------------


def test_site_has_nights_branches_cells_and_working_links(reports: Path) -> None:
    built = site.build(reports, reports / "site")
    found = pages(reports / "site")
    check_links(found, reports / "site")
    for text in found.values():
        assert not {"script", "img", "link", "form"} & set(Strict(text).tags)
    assert sorted(name for name in found if name.startswith("nights/")) == ["nights/2026-09.html", "nights/2026-10.html"]
    assert len(found) == built.pages == 1 + 4 + 2 + 2
    index = found["index.html"]
    rows = re.findall(r"<tr><td>(2026-\d\d-\d\d)</td><td>(.*?)</td>", index)
    assert rows == [("2026-10-03", "main"), ("2026-09-03", "main"), ("2026-09-02", "stable/15"), ("2026-09-01", "main")]
    assert re.search(
        r'class="sq f" href="runs/20260902T010000Z-0001.html" title="20260902T010000Z-0001: 1 passed, 1 failed, 1 known">F', index
    )
    assert "../runs/20261003T010000Z-0030/index.html" in index
    assert index.count(">deleted<") == 3
    assert "judged cases per hour" in index


def test_site_shows_plots_of_stages_and_throughput(reports: Path) -> None:
    site.build(reports, reports / "site")
    cell = pages(reports / "site")[f"cells/{CELL}.html"]
    assert re.findall(r"<text [^>]*>([^<]*)</text>", cell) == ["kernel 1.0", "login 4.0"]
    assert "throughput, MiB/s: lowest 100.00, highest 130.00" not in cell
    assert "throughput, MiB/s over 4 runs: lowest 100.00, highest 130.00, last 130.00" in cell


def test_site_shows_ages_of_known_issues_and_faults_of_hosts(reports: Path) -> None:
    site.build(reports, reports / "site")
    index = pages(reports / "site")["index.html"]
    assert re.search(
        r"FreeBSD bug 1</b><br>it is so<br><span class=\"meta\">[^<]*</span></td><td class=\"n\">32 days</td><td class=\"d\">2026-09-01",
        index,
    )
    hosts = re.findall(
        r"<tr><td>(host-\S+)</td><td class=\"n\">(\d+)</td><td class=\"n\">(\d+)</td><td class=\"n[^>]*>(\d+)</td>", index
    )
    assert hosts == [("host-4.20", "4", "9", "1"), ("host-xen1", "4", "4", "0")]
    assert "boot/test_boot::test_2 in freebsd-pvh-xen-4.20: ssh: it hangs" in index


def test_an_issue_is_gone_only_if_no_cell_of_the_last_run_has_it() -> None:
    def nights(*last: list[object]) -> list[Summary]:
        first = Summary("1", "2026-09-01T01:00:00Z", known=[["b", "w", False, "c", "x"]])
        return [first, Summary("2", "2026-09-11T01:00:00Z", known=list(last))]

    gone, there = ["b", "w", True, "c", "x"], ["b", "w", False, "c", "y"]
    assert [issue.gone for issue in site_data.issues(nights(gone), {})] == [True]
    assert [issue.gone for issue in site_data.issues(nights(gone, there), {})] == [False]
    assert [issue.gone for issue in site_data.issues(nights(there, gone), {})] == [False]
    (issue,) = site_data.issues(nights(), {("b", "w"): "2026-08-01"})
    assert (issue.days, issue.last.run) == (31, "1")


def test_guest_text_is_escaped(tmp_path: Path) -> None:
    odd = case(
        "F", HOSTILE, cell=HOSTILE, reason=HOSTILE, identity=HOSTILE, suite=HOSTILE, nodeid=f"{HOSTILE}.py::{HOSTILE}", parameters=HOSTILE,
        inputs={"host": HOSTILE, "run again because": HOSTILE},
    )  # fmt: skip
    lost = replace(odd, case="lost", outcome=Outcome.INFRASTRUCTURE, nodeid=f"{HOSTILE}.py::lost", death=None)
    good = case(cell=HOSTILE, metrics={HOSTILE: 1.0})
    known = case("K", "test_k", cell=HOSTILE, issue=f"{HOSTILE}: {HOSTILE}")
    for number in range(4):
        History(tmp_path / FILE).record(run(number, odd, lost, good, known, run=f"{number}{HOSTILE}", branch=HOSTILE))
    site.build(tmp_path, tmp_path / "site")
    found = pages(tmp_path / "site")
    assert len(found) == 1 + 4 + 1 + 1
    for text in found.values():
        parsed = Strict(text)
        assert not {"script", "img", "iframe", "object", "link", "form"} & set(parsed.tags)
        assert parsed.handlers == []
        assert not set(text) & set("\x00\x07\x1b\u202e\r")
    check_links(found, tmp_path / "site")


def test_an_empty_history(tmp_path: Path) -> None:
    site.build(tmp_path, tmp_path / "site")
    assert "No run is recorded" in (tmp_path / "site" / "index.html").read_text()


# -- a second build ---------------------------------------------------------------------------------------------------


def test_nothing_is_written_without_a_change(reports: Path) -> None:
    site.build(reports, reports / "site")
    for file in (reports / "site").rglob("*"):
        os.utime(file, (0, 0))
    assert site.build(reports, reports / "site").written == ()


def test_one_more_night_renders_only_what_shows_it(reports: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    site.build(reports, reports / "site")
    History(reports / FILE).record(night(31, "F"))
    rendered: list[str] = []
    render = site._Builder._run
    monkeypatch.setattr(site._Builder, "_run", lambda self, run: (rendered.append(run.run), render(self, run))[1])
    built = site.build(reports, reports / "site")
    assert rendered == ["20261004T010000Z-0031"]
    assert set(built.written) == {
        "runs/20261004T010000Z-0031.html", "nights/2026-10.html", f"cells/{CELL}.html", f"cells/{OTHER}.html", "index.html", ".fxh-site.json",
    }  # fmt: skip
    fresh = site.build(reports, reports / "fresh")
    assert pages(reports / "site") == pages(reports / "fresh")
    assert fresh.pages == built.pages


def test_many_nights_one_by_one_give_the_same_files_as_all_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Byte for byte, also the state. Runs get too old for the plots and for a page, and one cell is not in each night."""
    for name, value in (("RUNS", 9), ("PLOTTED", 4), ("LISTED", 3), ("NIGHTS", 3)):
        monkeypatch.setattr(site, name, value)
    history = History(tmp_path / FILE)
    for number in range(12):
        done = night(number, *"PFKI"[: 1 + number % 4], branch=("main", "stable/15")[number % 2])
        if number % 3:
            done = replace(done, cases=tuple(one for one in done.cases if one.cell == CELL))
        history.record(done)
        if number == 7:  # recorded again, with other results
            history.record(night(5, "P", branch="stable/15"))
        site.build(tmp_path, tmp_path / "site")
        shutil.rmtree(tmp_path / "fresh", ignore_errors=True)
        site.build(tmp_path, tmp_path / "fresh")
        files = [
            {str(path.relative_to(top)): path.read_bytes() for path in top.rglob("*") if path.is_file()}
            for top in (tmp_path / "site", tmp_path / "fresh")
        ]
        assert files[0] == files[1]


def test_a_cell_without_a_new_result_is_not_rendered(reports: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    site.build(reports, reports / "site")
    new = night(31, "P")
    History(reports / FILE).record(replace(new, cases=tuple(one for one in new.cases if one.cell == OTHER)))
    rendered: list[str] = []
    for name in ("_cell", "_index"):
        real = getattr(site._Builder, name)
        monkeypatch.setattr(
            site._Builder,
            name,
            lambda self, *cell, real=real: (rendered.append(cell[0] if cell else "index"), real(self, *cell))[1],
        )
    site.build(reports, reports / "site")
    assert rendered == [OTHER, "index"]
    rendered.clear()
    assert site.build(reports, reports / "site").written == ()
    assert rendered == []


def test_a_changed_table_of_known_issues_changes_the_pages_that_show_them(reports: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    site.build(reports, reports / "site")
    bug, _, why = BUG.partition(": ")
    monkeypatch.setattr(site_data, "recorded_since", lambda suites: {(bug, why): "2026-08-01"})
    built = site.build(reports, reports / "site")
    assert set(built.written) == {"index.html", f"cells/{CELL}.html", site_files.STATE}
    assert '<td class="n">63 days</td><td class="d">2026-08-01' in (reports / "site" / "index.html").read_text()
    assert pages(reports / "site") == pages(site.build(reports, reports / "fresh").index.parent)


def test_another_version_of_the_harness_renders_all_pages_again(reports: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    built = site.build(reports, reports / "site")
    rendered: list[str] = []
    render = site._Builder._render
    monkeypatch.setattr(
        site._Builder, "_render", lambda self, name, **values: (rendered.append(name), render(self, name, **values))[1]
    )
    site.build(reports, reports / "site")
    assert rendered == []
    monkeypatch.setattr(site, "__version__", "99")
    site.build(reports, reports / "site")
    assert len(rendered) == built.pages
    assert site.build(reports, reports / "site").written == ()


@pytest.mark.parametrize("damage", ["edited", "cut", "deleted", "state", "unfinished"])
def test_a_damaged_page_is_written_again(reports: Path, damage: str) -> None:
    site.build(reports, reports / "site")
    good = pages(reports / "site")
    page = reports / "site" / "runs" / "20260901T010000Z-0000.html"
    before = page.stat()
    match damage:
        case "edited":
            page.write_text(page.read_text().replace("passed", "failed"))
        case "cut":
            page.write_text(page.read_text()[:100])
        case "deleted":
            page.unlink()
        case "state":
            (reports / "site" / site_files.STATE).write_text("{")
            page.write_text("x")
        case "unfinished":
            page.with_name(f".{page.name}.unfinished").write_text("x")
    if page.is_file():
        os.utime(page, ns=(before.st_atime_ns, before.st_mtime_ns))
    site.build(reports, reports / "site")
    assert pages(reports / "site") == good
    assert not list((reports / "site").rglob("*.unfinished"))


def test_a_run_that_is_recorded_again_changes_its_page(reports: Path) -> None:
    site.build(reports, reports / "site")
    History(reports / FILE).record(night(0, "F", "K", "I"))
    built = site.build(reports, reports / "site")
    assert "runs/20260901T010000Z-0000.html" in built.written
    assert "nights/2026-09.html" in built.written
    assert "nights/2026-10.html" not in built.written
    assert pages(reports / "site") == pages(site.build(reports, reports / "fresh").index.parent)


def test_a_deleted_run_directory_removes_the_link(reports: Path) -> None:
    site.build(reports, reports / "site")
    (reports / "runs" / "20261003T010000Z-0030" / "index.html").unlink()
    site.build(reports, reports / "site")
    check_links(pages(reports / "site"), reports / "site")


def test_pages_of_runs_beyond_the_limit_are_removed(reports: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    site.build(reports, reports / "site")
    monkeypatch.setattr(site, "RUNS", 2)
    site.build(reports, reports / "site")
    found = pages(reports / "site")
    check_links(found, reports / "site")
    assert sum(name.startswith("runs/") for name in found) == 2


# -- bad circumstances ------------------------------------------------------------------------------------------------


def test_a_failed_write_leaves_whole_pages_and_the_old_first_page(reports: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    site.build(reports, reports / "site")
    before = (reports / "site" / "index.html").read_text()
    History(reports / FILE).record(night(31, "F"))
    real = Path.write_bytes
    for fails in (0, 1, 1, 1):
        calls = iter(range(100))

        def full(self: Path, data: bytes, fails: int = fails, calls: object = calls) -> int:
            if next(calls) == fails:  # type: ignore[call-overload]
                real(self, data[: len(data) // 2])
                raise OSError(28, "No space left on device")
            return real(self, data)

        monkeypatch.setattr(Path, "write_bytes", full)
        with pytest.raises(InfrastructureError, match="No space left"):
            site.build(reports, reports / "site")
        assert (reports / "site" / "index.html").read_text() == before
        assert all(text.endswith("</html>") for text in pages(reports / "site").values() if not text.startswith("."))
    monkeypatch.undo()
    site.build(reports, reports / "site")
    assert pages(reports / "site") == pages(site.build(reports, reports / "fresh").index.parent)


def test_a_killed_build_leaves_whole_pages(reports: Path) -> None:
    history = History(reports / FILE)
    for number in range(40, 80):
        history.record(night(number, "F", "K", "I"))
    argv = [sys.executable, "-c", "from harness.cli.main import main; main()", "report", "--site", str(reports / "site")]
    first = reports / "site" / "runs"
    process = subprocess.Popen([*argv, "--reports", str(reports)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    until = time.monotonic() + 60
    while process.poll() is None and not (first.is_dir() and any(first.glob("*.html"))) and time.monotonic() < until:
        time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    process.wait(timeout=30)
    assert all(text.endswith("</html>") for text in pages(reports / "site").values())
    site.build(reports, reports / "site")
    assert pages(reports / "site") == pages(site.build(reports, reports / "fresh").index.parent)
    assert not list((reports / "site").rglob("*.unfinished"))


def test_a_directory_with_other_files_is_refused(reports: Path) -> None:
    (reports / "mine").mkdir()
    (reports / "mine" / "thesis.txt").write_text("x")
    with pytest.raises(UsageError, match=r"has other files, such as 'thesis.txt'"):
        site.build(reports, reports / "mine")
    with pytest.raises(InfrastructureError, match=r"Not a directory|File exists"):
        site.build(reports, reports / "mine" / "thesis.txt")


def test_two_builds_at_once(reports: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(site, "_LOCK_TIMEOUT", 0.1)
    (reports / "site").mkdir()
    with (
        filelock.FileLock(reports / "site" / f"{site_files.STATE}.lock"),
        pytest.raises(InfrastructureError, match="another process"),
    ):
        site.build(reports, reports / "site")


def test_site_by_the_command(reports: Path) -> None:
    code, out = fxh(reports, "report", "--site", str(reports / "site"))
    assert (code, out) == (0, "9 pages, 10 files written\n")
    with pytest.raises(UsageError, match="pages of all runs"):
        fxh(reports, "report", "--site", str(reports / "site"), "--mail")
