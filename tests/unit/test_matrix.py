# SPDX-License-Identifier: BSD-2-Clause
"""The matrix of docs/suites.md: from runs to records, from records to the table."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from harness.cli import matrix as collecting
from harness.cli import tested
from harness.errors import UsageError
from harness.results import matrix, revision
from harness.results.matrix import Place, Record
from harness.results.model import CaseResult, KnownIssueMatch, RunResult
from tests.unit import written

HARNESS = "0.1.0 commit 0123456789ab"
SUITES = ("boot", "netfront")
EXPECTED = {
    ("boot", "pvh"): {"boot/test_boots", "boot/test_dies[halt]"},
    ("boot", "hvm"): {"boot/test_boots", "boot/test_dies[halt]"},
}


def case(word: str, name: str, cell: str, *, suite: str = "boot", bug: str = "", **inputs: str) -> CaseResult:
    function, _, parameter = name.removesuffix("]").partition("[")
    words = f"{cell}-{parameter}" if parameter else cell
    given = {"kernel": "kernel (FreeBSD 15.1-RELEASE-p1 XENA) sha256:00", "xen": "4.20.1", **inputs}
    return replace(
        written.case(word, function, cell=cell),
        nodeid=f"suites/{suite}/test_it.py::{function}[{words}]",
        suite=suite,
        inputs={} if word == "S" else given,
        known_issue=KnownIssueMatch(bug, "it is so: really") if bug else None,
        directory=f"{suite}-{name}-{cell}",
    )


def run(*cases: CaseResult, number: int = 1, harness: str = HARNESS, **more: str) -> RunResult:
    return written.run(number, *cases, inputs={"harness": harness, **more})


def test_a_run_becomes_records() -> None:
    pvh, uefi = "freebsd-pvh-xen-4.20", "freebsd-hvm-uefi-xen-4.20"
    done = run(
        case("P", "test_boots", pvh), case("K", "test_dies[halt]", pvh, bug="FreeBSD bug 197344"),
        case("F", "test_boots", uefi), case("S", "test_dies[halt]", uefi), case("I", "test_more", uefi),
        case("P", "test_boots", "control-pvh-xen-4.20"),
    )  # fmt: skip
    first, second = sorted(matrix.records(done, EXPECTED), key=lambda record: record.place.order)
    assert first == Record(
        "15.1", "pvh", "4.20", "boot", "run-001", "2026-11-02T01:00:00Z", "0123456789ab",
        passed=1, known={"boot/test_dies[halt]": "FreeBSD bug 197344"},
    )  # fmt: skip
    assert second.place == Place("15.1", "hvm-uefi", "4.20")
    assert (second.passed, second.skipped, second.failed, second.unjudged) == (0, 1, ("boot/test_boots",), ("boot/test_more",))
    assert (first.absent, second.absent) == (0, 0)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("freebsd-pvh-xen-4.17", Place("15.1", "pvh", "4.17")),
        ("freebsd-15.1-hvm-uefi-xen-4.20", Place("15.1", "hvm-uefi", "4.20")),
        ("freebsd-hvm-ovmf-xen-4.20", Place("15.1", "hvm-uefi", "4.20")),
        ("freebsd-hvm-bios-xen-4.20", Place("15.1", "hvm", "4.20")),
        ("freebsd-pvshim-xen-4.20", Place("15.1", "pvshim", "4.20")),
    ],
)
def test_place_of_a_cell(name: str, expected: Place) -> None:
    (found,) = matrix.records(run(case("P", "test_boots", name, xen="")), {})
    assert found.place == expected


@pytest.mark.parametrize("host", ["pv-lab", "freebsd-pvh-x", "control-hvm-uefi-x"])
def test_a_host_name_is_not_taken_for_another_part_of_the_cell(host: str) -> None:
    done = run(case("P", "test_boots", f"freebsd-hvm-{host}"), case("P", "test_boots", f"control-pv-{host}"))
    (found,) = matrix.records(done, {})
    assert found.place == Place("15.1", "hvm", "4.20")
    bare = run(case("P", "test_boots", f"freebsd-hvm-{host}", xen=""))
    with pytest.raises(UsageError, match="needs exactly one Xen version, has none"):
        matrix.records(bare, {})


def test_release_and_xen_come_from_the_inputs() -> None:
    """The cell of a real host has no Xen version. A kernel on an older world has a separate row."""
    (found,) = matrix.records(run(case("P", "test_boots", "freebsd-pvh-rack7", xen="4.17.5", world="FreeBSD 13.2")), {})
    assert found.place == Place("15.1 on world 13.2", "pvh", "4.17")
    skipped = run(case("S", "test_boots", "freebsd-hvm-xen-4.20"), case("P", "test_boots", "freebsd-pvh-xen-4.20"))
    assert {record.freebsd for record in matrix.records(skipped, {})} == {"15.1"}
    unnamed = run(case("P", "test_boots", "freebsd-hvm-xen-4.20", kernel=""))
    with pytest.raises(UsageError, match="needs exactly one FreeBSD release, has none"):
        matrix.records(unnamed, {})
    (given,) = matrix.records(unnamed, {}, freebsd="14.2")
    assert given.freebsd == "14.2"


def test_unsuitable_runs_are_refused() -> None:
    good = run(case("P", "test_boots", "freebsd-pvh-xen-4.20"))
    with pytest.raises(UsageError, match="is not finished"):
        matrix.records(replace(good, ended=""), {})
    with pytest.raises(UsageError, match="lacks shards 2/2"):
        matrix.records(replace(good, inputs={**good.inputs, "shard": "1/2"}), {})
    assert matrix.records(replace(good, inputs={**good.inputs, "shard": "1/2 | 2/2"}), {})
    with pytest.raises(UsageError, match="has no FreeBSD guest"):
        matrix.records(run(case("P", "test_boots", "control-pvh-xen-4.20")), {})
    two = run(
        case("P", "test_boots", "freebsd-pvh-xen-4.20"),
        case("P", "test_more", "freebsd-pvh-xen-4.20", kernel="k (FreeBSD 14.2-STABLE XENA) sha256:1"),
    )
    with pytest.raises(UsageError, match=r"needs exactly one FreeBSD release, has 14\.2, 15\.1"):
        matrix.records(two, {})


@pytest.mark.parametrize(
    ("harness", "expected"),
    [
        (HARNESS, "0123456789ab"),
        (f"{HARNESS} changed sha256:00", "0123456789ab+changes"),
        ("0.1.0 no commit sha256:00", "unknown"),
        ("", "unknown"),
    ],
)
def test_short_commit(harness: str, expected: str) -> None:
    assert revision.short(harness) == expected


def test_a_merged_run_has_the_commits_of_its_parts() -> None:
    done = run(case("P", "test_boots", "freebsd-pvh-xen-4.20"), harness=f"{HARNESS} | 0.1.0 commit ba9876543210")
    assert matrix.records(done, {})[0].commit == "0123456789ab ba9876543210"


RECORD = Record("15.1", "pvh", "4.20", "boot", "run-001", "2026-11-02T01:00:00Z", "0123456789ab", passed=3, skipped=1)


def test_a_later_run_replaces_an_earlier_one() -> None:
    later = replace(RECORD, run="run-002", started="2026-11-03T01:00:00Z", passed=4)
    other = replace(RECORD, suite="netfront")
    assert matrix.merge([RECORD, other], [later]) == (later, other)
    assert matrix.merge([later], [RECORD]) == (later,)


def test_records_are_read_as_they_were_written() -> None:
    data = matrix.merge([], [RECORD, replace(RECORD, freebsd="9.3", known={"boot/a[b]": "bug"}, failed=("boot/c",), absent=2)])
    assert [record.freebsd for record in data] == ["9.3", "15.1"]
    assert matrix.parse(matrix.dump(data)) == data
    assert matrix.parse(matrix.dump([])) == ()
    for text in ("", "{}", '{"schema": 1, "records": [{"failed": [], "unjudged": [], "x": 1}]}', '{"schema": 2, "records": []}'):
        with pytest.raises(UsageError, match=r"docs/matrix\.json"):
            matrix.parse(text)


def test_the_table() -> None:
    later = replace(
        RECORD,
        suite="netfront",
        started="2026-11-03T01:00:00Z",
        commit="ba9876543210",
        passed=5,
        known={"netfront/test_a[on]": "bug 1"},
    )
    broken = replace(RECORD, type="hvm-uefi", failed=("boot/test_b",), unjudged=("boot/test_c",), absent=4)
    elsewhere = replace(RECORD, freebsd="15.1 on world 13.2", known={"boot/test_a": "bug 2"})
    lines = matrix.render([RECORD, later, broken, elsewhere], SUITES).splitlines()
    rows = {tuple(line.strip("| ").split(" | ")[:2]): line.strip("| ").split(" | ")[2:] for line in lines if line.startswith("| ")}
    assert rows["FreeBSD", "guest type"] == ["Xen 4.17", "Xen 4.20"]
    assert rows["13.2", "HVM BIOS"] == ["not run", "not run"]
    assert rows["15.1", "PVH"] == ["not run", "2026-11-03 `0123456789ab` `ba9876543210`: 8 passed, 1 known, 2 skipped"]
    assert rows["15.1", "HVM UEFI"][1] == (
        "2026-11-02 `0123456789ab`: **1 failed**, 3 passed, 0 known, 1 skipped, 1 not judged, 4 not run (boot only)"
    )
    assert len(rows) == 1 + 9 + 1
    assert [line for line in lines if line.endswith(":") or line.startswith("-")] == [
        "Failed:", "- `boot/test_b`: 15.1 HVM UEFI 4.20",
        "Not judged:", "- `boot/test_c`: 15.1 HVM UEFI 4.20",
        "Known issues:", "- `boot/test_a` (bug 2): 15.1 on world 13.2 PVH 4.20", "- `netfront/test_a[on]` (bug 1): every cell that ran netfront",
    ]  # fmt: skip


def test_the_table_is_inserted_between_its_markers() -> None:
    document = f"before\n{matrix.BEGIN}\nold\n{matrix.END}\nafter\n"
    made = matrix.insert(document, "new\n")
    assert made == f"before\n{matrix.BEGIN}\n\nnew\n\n{matrix.END}\nafter\n"
    assert matrix.insert(made, "new\n") == made
    for wrong in ("", f"{matrix.END}{matrix.BEGIN}", document * 2):
        with pytest.raises(UsageError, match="no place for the matrix"):
            matrix.insert(wrong, "")


# -- the command ------------------------------------------------------------------------------------------------------


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A project with two suites and a document. The collected cases are :data:`EXPECTED`."""
    for suite in SUITES:
        (tmp_path / "suites" / suite).mkdir(parents=True)
        (tmp_path / "suites" / suite / "__init__.py").touch()
    (tmp_path / "images").mkdir()
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs/suites.md").write_text(f"# Suites\n{matrix.BEGIN}\n{matrix.END}\n")
    monkeypatch.setenv("FXH_PROJECT", str(tmp_path))

    def collect(given: dict[str, Any], *, every_cell: bool) -> tuple[list[collecting.Entry], tuple[()]]:
        from harness.plugin.cells import Cell

        return [
            collecting.Entry(suite, name, Cell("freebsd", kind, "xen-4.20", "4.20"), "")
            for (suite, kind), names in EXPECTED.items()
            for name in names
        ], ()

    monkeypatch.setattr(collecting, "collect", collect)
    return tmp_path


def test_record_and_check(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert tested.stale() == ("docs/suites.md: its matrix differs from docs/matrix.json; run `fxh matrix write`",)
    tested.write()
    assert tested.stale() == ()
    pvh = "freebsd-pvh-xen-4.20"
    written.save(project / "reports", run(case("P", "test_boots", pvh), case("P", "test_dies[halt]", pvh)))

    tested.record(["run-001"], "", False, project / "reports")

    assert tested.stale() == ()
    assert "2026-11-02 `0123456789ab`: 2 passed, 0 known, 0 skipped (boot only)" in (project / "docs/suites.md").read_text()
    assert capsys.readouterr().out == "15.1 PVH 4.20 boot: recorded\n"
    file = project / "docs/matrix.json"
    file.write_text(file.read_text().replace('"passed": 2', '"passed": 3'))
    assert len(tested.stale()) == 1
    file.write_text("x")
    assert tested.stale()[0].startswith("docs/matrix.json: ")
    (project / "docs/suites.md").unlink()
    file.unlink()
    assert tested.stale() == ("docs/suites.md: No such file or directory",)


def test_a_part_of_a_run_is_refused(project: Path) -> None:
    written.save(project / "reports", run(case("P", "test_boots", "freebsd-pvh-xen-4.20")))
    with pytest.raises(UsageError, match=r"lacks 1 cases of boot in 15\.1 PVH 4\.20") as caught:
        tested.record(["run-001"], "", False, project / "reports")
    assert "fxh merge" in caught.value.hint
    assert not (project / "docs/matrix.json").exists()
    tested.record(["run-001"], "", True, project / "reports")
    tested.show()
    assert "1 not run (boot only)" in (project / "docs/suites.md").read_text()


def test_an_older_run_changes_nothing(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pvh = "freebsd-pvh-xen-4.20"
    for number, words in ((1, "PF"), (2, "PP")):
        cases = [case(word, name, pvh) for word, name in zip(words, ("test_boots", "test_dies[halt]"), strict=True)]
        written.save(project / "reports", run(*cases, number=number))
    tested.record(["run-002"], "", False, project / "reports")
    tested.record(["run-001"], "", False, project / "reports")
    assert capsys.readouterr().out.splitlines()[-1] == "15.1 PVH 4.20 boot: run-001 is older than the recorded run"
    assert "**" not in (project / "docs/suites.md").read_text()
