# SPDX-License-Identifier: BSD-2-Clause
"""Additions to allure's results: the environment, categories by verdict, and the history, for allure 2 and allure 3.

allure 2 reads ``categories.json`` and ``history/``. allure 3 ignores both. It reads its categories and the path of its history from
the configuration ``allurerc.json``; the history is ``history.jsonl``.
"""

from __future__ import annotations

import calendar
import hashlib
import json
import re
import time
from collections import Counter
from pathlib import Path
from typing import Any

from harness.report.address import address, address_of
from harness.report.model import CaseReport, Report
from harness.report.verdict_line import with_verdict
from harness.results.model import FAILED, KNOWN, PASSED, SKIPPED, CaseResult, Outcome
from harness.safetext import plain
from harness.verdicts import values

# allure 2 puts a result into each category that lists its status and whose regex matches its message, so messages begin with
# "[verdict]". For pytest and allure a known issue is skipped. A flaky case may have passed this time.
_BAD = ("failed", "broken")
_CATEGORIES = {
    values.REGRESSION: ("Regression: it passed before", _BAD),
    values.BASELINE_UNTESTED: ("Failed, without a result in the baseline", _BAD),
    values.NEVER_PASSED: ("Never passed", _BAD),
    values.KNOWN_GONE: ("Known issue gone: remove its entry", (*_BAD, "passed")),
    values.STILL_FAILING: ("Still failing", _BAD),
    values.FLAKY: ("Flaky: the same inputs pass and fail", (*_BAD, "passed")),
    values.KNOWN: ("Known issue", (*_BAD, "skipped")),
    values.BLOCKED: ("Blocked by an earlier failure", _BAD),
    values.PAUSED: ("Paused: a person had the case", (*_BAD, "passed")),
    values.INFRASTRUCTURE: ("Infrastructure: no result for the product", _BAD),
}
_ALLURE_STATUS = {KNOWN: "skipped", PASSED: "passed", FAILED: "failed", SKIPPED: "skipped"}
# The names of runs begin with their start: 20261125T031347Z-1a2b
_STARTED = re.compile(r"\d{8}T\d{6}Z")


def write(directory: Path, report: Report) -> None:
    """Add verdicts to the results in ``directory``, and write environment, categories, history and allure 3's configuration."""
    lines = [f"{name.replace(' ', '_')}={_line(value)}" for name, value in sorted(report.inputs)]
    (directory / "environment.properties").write_text("\n".join([*lines, f"verdict={_line(report.sentence)}"]) + "\n", "utf-8")
    # Java and JavaScript read this regex, and JavaScript has no (?s).
    categories = [
        {"name": name, "matchedStatuses": list(statuses), "messageRegex": rf"^\[{kind}\][\s\S]*"}
        for kind, (name, statuses) in _CATEGORIES.items()
    ]
    _dump(directory / "categories.json", categories)
    order = len(report.runs)
    _dump(directory / "executor.json", {"name": "fxh", "type": "fxh", "buildName": report.run.run, "buildOrder": order})
    by_name = {address_of(item.result): item for item in report.cases}
    found: dict[str, tuple[str, CaseReport]] = {}
    for file in sorted(directory.glob("*-result.json")):
        try:
            result = json.loads(file.read_text("utf-8"))
            # suites.boot.test_boot#test_boots_to_login
            item = by_name.get(address(result["fullName"].partition("#")[0], result["name"]))
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            continue
        if item is not None:
            _dump(file, _with_identity(_with_verdict(result, item), item.result))
            found[result["historyId"]] = (_allure3_id(result), item)
    _history(directory / "history", report, {name: item for name, (_, item) in found.items()})
    lines3 = [json.dumps(point) for point in _allure3_history(report, dict(found.values()))]
    (directory / "history.jsonl").write_text("".join(f"{line}\n" for line in lines3), "utf-8")
    _dump(directory.parent / "allurerc.json", _allure3_config(report))


def _with_verdict(result: dict[str, Any], item: CaseReport) -> dict[str, Any]:
    """allure's result with the verdict in its message and labels. A second call replaces the verdict of the first."""
    kind = item.verdict.kind
    labels = [label for label in result.get("labels", []) if label.get("name") != "verdict"]
    has_verdict = len(labels) < len(result.get("labels", []))
    result["labels"] = [*labels, {"name": "verdict", "value": kind}]
    if kind in _CATEGORIES and result.get("status") in _CATEGORIES[kind][1]:
        details = result.get("statusDetails") or {}
        details["message"] = with_verdict(plain(details.get("message") or ""), item.verdict, again=has_verdict)
        details["flaky"] = kind == values.FLAKY
        details["known"] = kind == values.KNOWN
        result["statusDetails"] = details
    if item.verdict.reference:
        links = [link for link in result.get("links", []) if link.get("type") != "issue"]
        result["links"] = [*links, {"type": "issue", "name": item.verdict.reference, "url": item.verdict.reference}]
    return result


def _with_identity(result: dict[str, Any], case: CaseResult) -> dict[str, Any]:
    """allure's result with one identity for each case and cell.

    allure-pytest identifies a result by the text of its parameters. That text may contain an address in memory, which differs from
    run to run, or may be the same for different objects.
    """
    result["parameters"] = [{"name": "cell", "value": case.cell}] if case.cell else []
    own = case.key.removesuffix("]").partition("[")[2]
    if own:
        result["parameters"].append({"name": "parameters", "value": own})
    result["testCaseId"] = _md5(case.key.partition("[")[0])
    result["historyId"] = _md5(f"{case.key} {case.cell}")
    return result


def _history(directory: Path, report: Report, ids: dict[str, CaseReport]) -> None:
    """Write the earlier runs in the format that allure 2 leaves for its next report."""
    directory.mkdir(exist_ok=True)
    cases = {}
    for identity, item in ids.items():
        before = item.strip[:-1]
        items = [
            {"uid": f"{run}", "status": _ALLURE_STATUS.get(outcome, "broken"), "time": {}} for run, outcome in reversed(before)
        ]
        cases[identity] = {"statistic": _statistic([outcome for _, outcome in before]), "items": items[:20]}
    _dump(directory / "history.json", cases)
    trend = []
    for n, run in enumerate(report.runs[:-1]):
        outcomes = [outcome for item in report.cases for name, outcome in item.strip if name == run]
        trend.append({"buildOrder": n + 1, "reportName": run, "data": _statistic(outcomes)})
    _dump(directory / "history-trend.json", trend[::-1][:20])


def _statistic(outcomes: list[Outcome]) -> dict[str, int]:
    tally = Counter(_ALLURE_STATUS.get(outcome, "broken") for outcome in outcomes)
    return {name: tally[name] for name in ("failed", "broken", "skipped", "passed")} | {"unknown": 0, "total": len(outcomes)}


# -- allure 3 ---------------------------------------------------------------------------------------------------------


def _allure3_config(report: Report) -> dict[str, Any]:
    """The configuration that ``allure generate`` reads in the run's directory. The first category that matches counts."""
    rules = [{"name": name, "matchers": {"labels": {"verdict": f"^{kind}$"}}} for kind, (name, _) in _CATEGORIES.items()]
    return {
        "name": f"FreeBSD under Xen, {report.run.run}",
        "resultsDir": "allure",
        "output": "allure-report",
        "historyPath": "allure/history.jsonl",
        # The file has the harness's own history. allure would add this run once more at each call.
        "appendHistory": False,
        "categories": rules,
    }


def _allure3_history(report: Report, ids: dict[str, CaseReport]) -> list[dict[str, Any]]:
    """The earlier runs, oldest first: one point for each run, with one result for each case and cell."""
    points: dict[str, dict[str, Any]] = {
        run: {
            "uuid": run,
            "name": run,
            "timestamp": _milliseconds(report, run),
            "knownTestCaseIds": [],
            "testResults": {},
            "url": "",
        }
        for run in report.runs[:-1]
    }
    for identity, item in ids.items():
        for run, outcome in item.strip[:-1]:
            if run in points:
                points[run]["knownTestCaseIds"].append(identity.partition(".")[0])
                points[run]["testResults"][identity] = {
                    "id": f"{run} {identity}",
                    "name": item.result.title or item.result.case,
                    "fullName": f"{item.result.key} in {item.result.cell}",
                    "status": _ALLURE_STATUS.get(outcome, "broken"),
                    "stop": points[run]["timestamp"],
                    "labels": [],
                    "url": "",
                    "historyId": identity,
                    "reportLinks": [],
                }
    return list(points.values())


def _allure3_id(result: dict[str, Any]) -> str:
    """allure 3's own identity of a result, which it computes from ``testCaseId`` and the parameters."""
    parameters = ",".join(f"{one['name']}:{one['value']}" for one in result["parameters"])
    return f"{_md5(result['testCaseId'])}.{_md5(parameters)}"


def _milliseconds(report: Report, run: str) -> int:
    """When a run started, in ms since 1970. A name without a time gives its place before this run."""
    if match := _STARTED.match(run):
        return calendar.timegm(time.strptime(match[0], "%Y%m%dT%H%M%SZ")) * 1000
    return (len(report.runs) - report.runs.index(run)) * -1000 + int(time.time() * 1000)


def _md5(text: str) -> str:
    return hashlib.md5(text.encode("utf-8", "surrogatepass"), usedforsecurity=False).hexdigest()


def _line(text: str) -> str:
    return " ".join(plain(text).split())


def _dump(path: Path, data: object) -> None:
    path.write_text(json.dumps(data, indent=1), encoding="utf-8")
