# SPDX-License-Identifier: BSD-2-Clause
"""Results for other tools: KCIDB data, JUnit as GitLab and Jenkins show it, and allure's results, from a real pytest run."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import textwrap
import xml.etree.ElementTree as ET
from dataclasses import replace
from pathlib import Path

import pytest
from written import CELL, case, run, save

from harness import report as reporting
from harness.errors import UsageError
from harness.report import kcidb
from harness.results.model import CaseResult, RunResult
from harness.results.where import Where

CELLS = (CELL, "freebsd-hvm-uefi-xen-4.20")
HOSTILE = "</x>]]><script>alert(1)</script>\x1b[31m\x00\u202e&amp;"
BUG, GONE = "FreeBSD bug 280884, x: it is so", "xen tools/pygrub: gone"
# The text of an object parameter differs from run to run.
SUITE = f"""
    import os
    import pytest

    NIGHT = int(os.environ["NIGHT"])

    class Cell(str):
        pass

    class Shape:
        def __init__(self, memory):
            self.memory = memory

    cells = pytest.mark.parametrize("cell", [Cell(name) for name in {CELLS}], ids=str)
    sizes = pytest.mark.parametrize("shape", [Shape(256), Shape(512)], ids=["256", "512"])

    @cells
    def test_passes(cell): pass

    @cells
    @sizes
    def test_sizes(cell, shape): assert shape.memory == 256 or NIGHT < 4

    @cells
    def test_known(cell): pytest.xfail("known issue: {BUG}")

    @cells
    def test_gone(cell): pytest.fail("the case passes, but is listed as a known issue: {GONE}")

    @cells
    def test_lost(cell): raise RuntimeError("[infrastructure] the host is lost")

    @cells
    def test_flaky_red(cell): assert NIGHT == 2

    @cells
    def test_flaky_green(cell): assert NIGHT != 3

    @cells
    def test_skip(cell): pytest.skip("not in this cell")

    @pytest.fixture
    def leak():
        yield
        raise RuntimeError("a domain is left")

    @cells
    def test_twice(cell, leak): raise AssertionError("the guest died")

    @pytest.fixture
    def guest(): raise AssertionError("the guest died in setup")

    @cells
    def test_setup(cell, guest): pass
"""


def night(number: int) -> RunResult:
    """Our results of the suite. The kernel changes in night 4."""
    cases: list[CaseResult] = []
    for cell in CELLS:

        def made(word: str, name: str, own: str = "", cell: str = cell, **more: object) -> CaseResult:
            ids = f"{own}-{cell}" if own else cell
            kernel = "B" if number == 4 and "flaky" not in name else "A"
            where = Where("freebsd", cell.split("-")[1], "xen-4.20", "4.20")
            return case(
                word, name, cell=cell, kernel=kernel, nodeid=f"suites/boot/test_boot.py::{name}[{ids}]", parameters=own, where=where,
                directory=f"{name}-{ids}", **more,
            )  # fmt: skip

        cases += [
            made("P", "test_passes"),
            made("P", "test_sizes", "256"),
            made("F" if number == 4 else "P", "test_sizes", "512"),
            made("K", "test_known", issue=BUG),
            made("F", "test_gone", issue=GONE),
            made("I", "test_lost", reason="the host is lost"),
            made("P" if number == 2 else "F", "test_flaky_red"),
            made("F" if number == 3 else "P", "test_flaky_green"),
            made("S", "test_skip"),
            made("F", "test_twice", identity="11111111 panic: x @ y"),
            made("F", "test_setup", phase="setup", identity="22222222 panic: x @ y"),
        ]
    return run(number, *cases, run=f"2026112{number}T010000Z-000{number}", branch="stable/14", exit_code=1)


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The directory of the last of four nights. pytest ran the suite in each, and its files were judged twice."""
    top = tmp_path_factory.mktemp("shared")
    suite = top / "suites" / "boot"
    suite.mkdir(parents=True)
    for directory in (suite.parent, suite):
        (directory / "__init__.py").touch()
    (suite / "test_boot.py").write_text(textwrap.dedent(SUITE))
    for number in range(1, 5):
        done = night(number)
        path = save(top / "reports", done)
        argv = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "no:fxh", "suites"]
        argv += ["--junitxml", str(path / "junit.xml"), "--alluredir", str(path / "allure")]
        subprocess.run(argv, cwd=top, env=os.environ | {"NIGHT": str(number)}, stdout=subprocess.DEVNULL, timeout=120, check=False)
        made = reporting.publish(path, done)
        reporting.write_reports(path, made)
    return path


# -- JUnit ------------------------------------------------------------------------------------------------------------


def results(path: Path) -> dict[str, ET.Element]:
    """The element of each case in the first cell, by the name of its function and parameters."""
    found = ET.parse(path / "junit.xml").getroot().iter("testcase")
    return {one.get("name", "").replace(f"-{CELL}", "").replace(CELL, ""): one for one in found if CELL in one.get("name", "")}


@pytest.mark.parametrize(
    ("name", "element", "says"),
    [
        ("test_known[]", "skipped", "[known issue] known: FreeBSD bug 280884, x: it is so"),
        ("test_gone[]", "failure", "[known issue gone] passed, although a known issue expects a failure"),
        ("test_sizes[512]", "failure", "[regression] passed in the last 3 runs"),
        ("test_flaky_red[]", "failure", "[flaky] failed 3 of 4 times with the same inputs"),
        ("test_lost[]", "error", "[infrastructure] not judged: infrastructure failed"),
        ("test_setup[]", "failure", "[never passed] failed in all 4 runs"),
        ("test_twice[]", "failure", "[never passed] failed in all 4 runs"),
    ],
)
def test_junit_shows_the_verdict_where_gitlab_and_jenkins_look(published: Path, name: str, element: str, says: str) -> None:
    (result,) = (child for child in results(published)[name] if child.tag in ("failure", "error", "skipped"))
    assert result.tag == element
    assert result.get("message", "").startswith(says), "Jenkins shows the message"
    assert (result.text or "").startswith(says), "GitLab shows the text"
    assert (result.text or "").count(says) == 1, "a second call adds no second verdict"


def test_junit_marks_flaky_cases_that_pass(published: Path) -> None:
    (mark,) = results(published)["test_flaky_green[]"].iter("flakyFailure")
    assert mark.get("message", "").startswith("[flaky] passed now, but failed 1 of 4 times with the same inputs")
    assert [child.tag for child in results(published)["test_passes[]"]] == ["properties"]


def test_junit_has_one_element_for_each_case_and_counts_it_once(published: Path) -> None:
    (suite,) = ET.parse(published / "junit.xml").getroot().iter("testsuite")
    assert {name: suite.get(name) for name in ("tests", "failures", "errors", "skipped")} == {
        "tests": "22", "failures": "10", "errors": "2", "skipped": "4",
    }  # fmt: skip
    assert len({one.get("name") for one in suite.iter("testcase")}) == 22
    (failure,) = results(published)["test_twice[]"].iter("failure")
    assert "a domain is left" in (failure.text or ""), "the error of the teardown stays"


# -- allure -----------------------------------------------------------------------------------------------------------


def allure_results(path: Path) -> dict[str, dict[str, object]]:
    return {data["name"]: data for data in (json.loads(file.read_text()) for file in (path / "allure").glob("*-result.json"))}


def test_each_case_and_cell_has_one_identity_in_all_nights(published: Path) -> None:
    nights = [allure_results(published.parent / f"2026112{n}T010000Z-000{n}") for n in range(1, 5)]
    for name, last in nights[-1].items():
        for key in ("historyId", "testCaseId", "parameters"):
            assert {json.dumps(found[name][key]) for found in nights} == {json.dumps(last[key])}, (name, key)
    assert len({last["historyId"] for last in nights[-1].values()}) == 22
    assert nights[-1][f"test_sizes[512-{CELL}]"]["parameters"] == [
        {"name": "cell", "value": CELL},
        {"name": "parameters", "value": "512"},
    ]


def test_history_for_allure_3_has_a_result_for_each_night(published: Path) -> None:
    points = [json.loads(line) for line in (published / "allure" / "history.jsonl").read_text().splitlines()]
    assert [point["name"][:8] for point in points] == ["20261121", "20261122", "20261123"]
    assert points[0]["timestamp"] == 1795222800000
    assert all(len(point["testResults"]) == 22 for point in points)


def test_categories_have_no_flags_that_javascript_lacks(published: Path) -> None:
    """allure 3 takes a regex that JavaScript cannot compile for one that does not match."""
    assert "(?" not in (published / "allure" / "categories.json").read_text()


@pytest.mark.skipif(not shutil.which("allure"), reason="no allure 3 on this machine; npm install -g allure")
def test_allure_3_shows_categories_and_one_history_for_each_cell(published: Path) -> None:
    subprocess.run(["allure", "generate"], cwd=published, timeout=300, check=True, stdout=subprocess.DEVNULL)
    found = {}
    for file in (published / "allure-report").rglob("test-results/*.json"):
        data = json.loads(file.read_text())
        category = [one["name"] for one in data.get("categories", ())]
        found[data["name"]] = (category, "".join(one["status"][0] for one in data.get("history", ())))
    for cell in CELLS:
        assert found[f"test_known[{cell}]"] == (["Known issue"], "sss")
        assert found[f"test_gone[{cell}]"] == (["Known issue gone: remove its entry"], "fff")
        assert found[f"test_lost[{cell}]"] == (["Infrastructure: no result for the product"], "bbb")
        assert found[f"test_sizes[512-{cell}]"] == (["Regression: it passed before"], "ppp")
        assert found[f"test_sizes[256-{cell}]"] == ([], "ppp")
        assert found[f"test_flaky_green[{cell}]"] == (["Flaky: the same inputs pass and fail"], "fpp")


# -- KCIDB ------------------------------------------------------------------------------------------------------------


def data_of(tmp_path: Path, *cases: CaseResult, **more: object) -> dict[str, list[dict[str, object]]]:
    done = run(1, *cases, **more)
    made = reporting.publish(save(tmp_path, done), done)
    found: dict[str, list[dict[str, object]]] = json.loads(kcidb.render(made, "fxh_example"))
    return found


def test_kcidb_has_a_status_for_each_outcome(tmp_path: Path) -> None:
    cases = [case(word, f"test_{word.lower()}") for word in "PFSIH"]
    known, gone = case("K", "test_k", issue=BUG), case("F", "test_g", issue=GONE)
    data = data_of(tmp_path, *cases, known, gone, branch="stable/14")
    status = {str(test["path"])[-1]: test["status"] for test in data["tests"]}
    assert status == {"p": "PASS", "f": "FAIL", "s": "SKIP", "i": "MISS", "h": "ERROR", "k": "FAIL", "g": "PASS"}
    assert data["version"] == {"major": 5, "minor": 3}
    (build,), (checkout,) = data["builds"], data["checkouts"]
    assert build["checkout_id"] == checkout["id"]
    assert checkout["git_repository_branch"] == "stable/14"
    assert build["comment"] == "kernel: kernel.A sha256:" + "A" * 64


def test_kcidb_has_no_paused_case(tmp_path: Path) -> None:
    paused = replace(case("K", "test_k", issue=BUG), paused="before-call")
    data = data_of(tmp_path, paused, case("P", "test_p"))
    assert [str(test["path"])[-1] for test in data["tests"]] == ["p"]
    assert data["incidents"] == []


def test_kcidb_links_known_issues_to_tests(tmp_path: Path) -> None:
    known = [case("K", f"test_{n}", issue=BUG) for n in range(2)]
    data = data_of(tmp_path, *known, case("F", "test_gone", issue=GONE), case())
    issues = {issue["id"]: issue for issue in data["issues"]}
    assert sorted(str(issue["comment"]) for issue in data["issues"]) == [BUG, GONE]
    assert {issue.get("report_url") for issue in data["issues"]} == {
        "https://bugs.freebsd.org/bugzilla/show_bug.cgi?id=280884",
        None,
    }
    present = [(issues[incident["issue_id"]]["comment"], incident["present"]) for incident in data["incidents"]]
    assert sorted(present, key=str) == [(BUG, True), (BUG, True), (GONE, False)]
    tests = {test["id"] for test in data["tests"]}
    assert {incident["test_id"] for incident in data["incidents"]} < tests


def test_kcidb_ids_are_unique_and_refer_to_each_other(tmp_path: Path) -> None:
    cases = [case("PF"[n % 2], f"test_{n}", cell=cell, kernel="ABC"[n % 3]) for n in range(6) for cell in CELLS]
    data = data_of(tmp_path, *cases)
    for name in ("checkouts", "builds", "tests"):
        ids = [row["id"] for row in data[name]]
        assert len(set(ids)) == len(ids)
        assert all(str(one).startswith("fxh_example:") for one in ids)
    assert [len(data[name]) for name in ("checkouts", "builds", "tests")] == [3, 3, 12]
    assert {test["build_id"] for test in data["tests"]} == {build["id"] for build in data["builds"]}


def test_kcidb_takes_hostile_and_long_texts(tmp_path: Path) -> None:
    hostile = case(
        "F", title=HOSTILE, reason=HOSTILE, identity=HOSTILE, excerpt=HOSTILE * 2000, inputs={"kernel": HOSTILE, HOSTILE: "x"},
        metrics={"bad": float("nan"), "good": 1.0, HOSTILE: 2.0}, parameters="a/b.c d", started="yesterday",
    )  # fmt: skip
    text = json.dumps(data_of(tmp_path, hostile, case("K", "test_k", issue=f"{HOSTILE}: {HOSTILE}"), branch=HOSTILE))
    assert "\\u0000" not in text
    assert "NaN" not in text
    (test,) = (one for one in json.loads(text)["tests"] if "metrics" in one["misc"])
    assert len(test["log_excerpt"]) <= 16_384
    assert re.fullmatch(r"[a-zA-Z0-9_-]+(\.[a-zA-Z0-9_-]+)*", test["path"])
    assert "start_time" not in test


@pytest.mark.parametrize("origin", ["", "FreeBSD", "a-b", "a:b", "a b", "a\n", "ü", "a/b"])
def test_an_invalid_origin_is_refused(origin: str) -> None:
    with pytest.raises(UsageError) as caught:
        kcidb.check_origin(origin)
    assert "--origin NAME" in caught.value.hint


@pytest.mark.skipif("FXH_KCIDB_PYTHON" not in os.environ, reason="FXH_KCIDB_PYTHON names no Python that has kcidb-io")
def test_kcidb_io_accepts_the_file(published: Path, tmp_path: Path) -> None:
    """kcidb-io is under the GPL: it is not imported, and validates in a separate process and environment."""
    done = night(4)
    text = kcidb.render(reporting.build_report(published, done), "fxh_example")
    hostile = case("F", reason=HOSTILE, excerpt=HOSTILE * 2000, inputs={"kernel": HOSTILE}, metrics={HOSTILE: float("inf")})
    odd_run = run(1, hostile, branch=HOSTILE)
    odd = kcidb.render(reporting.publish(save(tmp_path, odd_run), odd_run), "x")
    program = "import json, sys; from kcidb_io.schema import LATEST; LATEST.validate_exactly(json.load(sys.stdin))"
    for document in (text, odd):
        subprocess.run([os.environ["FXH_KCIDB_PYTHON"], "-c", program], input=document, text=True, check=True, timeout=60)
    broken = json.dumps(json.loads(text) | {"tests": [{"id": "x:1", "origin": "x"}]})
    failed = subprocess.run(
        [os.environ["FXH_KCIDB_PYTHON"], "-c", program], input=broken, text=True, capture_output=True, timeout=60
    )
    assert failed.returncode, "the validator refuses nothing"
