# SPDX-License-Identifier: BSD-2-Clause
"""Additions to allure's results: the environment, categories by verdict, and the history for allure's trends."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

from harness.report.address import address, address_of
from harness.report.model import CaseReport, Report
from harness.results.model import FAILED, KNOWN, PASSED, SKIPPED, Outcome
from harness.safetext import plain
from harness.verdicts import values

# allure puts a result into each category that lists its status and whose regex matches its message, so messages begin with
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
    values.INFRASTRUCTURE: ("Infrastructure: no result for the product", _BAD),
}
_ALLURE_STATUS = {KNOWN: "skipped", PASSED: "passed", FAILED: "failed", SKIPPED: "skipped"}


def write(directory: Path, report: Report) -> None:
    """Write ``environment.properties``, ``categories.json``, ``executor.json`` and ``history/``; add verdicts to the results."""
    lines = [f"{name.replace(' ', '_')}={_line(value)}" for name, value in sorted(report.inputs)]
    (directory / "environment.properties").write_text("\n".join([*lines, f"verdict={_line(report.sentence)}"]) + "\n", "utf-8")
    categories = [
        {"name": name, "matchedStatuses": list(statuses), "messageRegex": rf"(?s)^\[{kind}\].*"}
        for kind, (name, statuses) in _CATEGORIES.items()
    ]
    _dump(directory / "categories.json", categories)
    order = len(report.runs)
    _dump(directory / "executor.json", {"name": "fxh", "type": "fxh", "buildName": report.run.run, "buildOrder": order})
    by_name = {address_of(item.result): item for item in report.cases}
    ids: dict[str, CaseReport] = {}
    for file in sorted(directory.glob("*-result.json")):
        try:
            result = json.loads(file.read_text("utf-8"))
            # suites.boot.test_boot#test_boots_to_login
            item = by_name.get(address(result["fullName"].partition("#")[0], result["name"]))
        except (OSError, ValueError, KeyError):
            continue
        if item is not None:
            _dump(file, _with_verdict(result, item))
            ids[str(result.get("historyId", ""))] = item
    _history(directory / "history", report, ids)


def _with_verdict(result: dict[str, Any], item: CaseReport) -> dict[str, Any]:
    """allure's result with the verdict in its message and labels. A second call replaces the verdict of the first."""
    kind = item.verdict.kind
    labels = [label for label in result.get("labels", []) if label.get("name") != "verdict"]
    has_verdict = len(labels) < len(result.get("labels", []))
    result["labels"] = [*labels, {"name": "verdict", "value": kind}]
    if kind in _CATEGORIES and result.get("status") in _CATEGORIES[kind][1]:
        details = result.get("statusDetails") or {}
        message = details.get("message") or ""
        if has_verdict and any(message.startswith(f"[{other}] ") for other in values.KINDS):
            message = message.partition("\n")[2]
        details["message"] = f"[{kind}] {item.verdict.reason}\n{plain(message)}"
        details["flaky"] = kind == values.FLAKY
        details["known"] = kind == values.KNOWN
        result["statusDetails"] = details
    if item.verdict.reference:
        links = [link for link in result.get("links", []) if link.get("type") != "issue"]
        result["links"] = [*links, {"type": "issue", "name": item.verdict.reference, "url": item.verdict.reference}]
    return result


def _history(directory: Path, report: Report, ids: dict[str, CaseReport]) -> None:
    """Write the earlier runs in the format that ``allure generate`` leaves for the next report."""
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


def _line(text: str) -> str:
    return " ".join(plain(text).split())


def _dump(path: Path, data: object) -> None:
    path.write_text(json.dumps(data, indent=1), encoding="utf-8")
