"""What allure's results lack: the environment, categories by verdict, and the history that allure draws trends from."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

from harness.console.text import plain
from harness.report.gather import CaseReport, Report, address, address_of
from harness.results.model import FAILED, KNOWN, PASSED, SKIPPED
from harness.verdicts import values

# allure sorts a result into each category whose regex matches its message, which begins with "[verdict]" for that.
_CATEGORIES = {
    values.REGRESSION: "Regression: it passed before",
    values.BASELINE_UNTESTED: "Failed, and the baseline does not know it",
    values.NEVER_PASSED: "Never passed",
    values.STILL_FAILING: "Still failing",
    values.FLAKY: "Flaky: the same inputs pass and fail",
    values.KNOWN: "Known issue",
    values.BLOCKED: "Blocked by an earlier failure",
    values.INFRASTRUCTURE: "Infrastructure: nothing was learned",
}
_STATUS = {KNOWN: "skipped", PASSED: "passed", FAILED: "failed", SKIPPED: "skipped"}


def write(directory: Path, report: Report) -> None:
    """Write ``environment.properties``, ``categories.json``, ``executor.json`` and ``history/``; verdicts into the results."""
    lines = [f"{name.replace(' ', '_')}={_line(value)}" for name, value in sorted(report.inputs)]
    (directory / "environment.properties").write_text("\n".join([*lines, f"verdict={_line(report.sentence)}"]) + "\n", "utf-8")
    categories = [
        {"name": name, "matchedStatuses": ["failed", "broken"], "messageRegex": rf"(?s)^\[{kind}\].*"}
        for kind, name in _CATEGORIES.items()
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
            _dump(file, _judged(result, item))
            ids[str(result.get("historyId", ""))] = item
    _history(directory / "history", report, ids)


def _judged(result: dict[str, Any], item: CaseReport) -> dict[str, Any]:
    """allure's own result with our verdict in its message and labels; the same when it is done again."""
    labels = [label for label in result.get("labels", []) if label.get("name") != "verdict"]
    result["labels"] = [*labels, {"name": "verdict", "value": item.verdict.kind}]
    if result.get("status") in ("failed", "broken"):
        details = result.setdefault("statusDetails", {})
        said = details.get("message", "")
        head = f"[{item.verdict.kind}] "
        if not any(said.startswith(f"[{kind}] ") for kind in values.KINDS):
            details["message"] = f"{head}{item.verdict.reason}\n{plain(said)}"
        details["flaky"] = item.verdict.kind == values.FLAKY
        details["known"] = item.verdict.kind == values.KNOWN
    if item.verdict.reference:
        links = [link for link in result.get("links", []) if link.get("type") != "issue"]
        result["links"] = [*links, {"type": "issue", "name": item.verdict.reference, "url": item.verdict.reference}]
    return result


def _history(directory: Path, report: Report, ids: dict[str, CaseReport]) -> None:
    """The runs before, in the form that ``allure generate`` leaves for the next report."""
    directory.mkdir(exist_ok=True)
    cases = {}
    for identity, item in ids.items():
        before = item.strip[:-1]
        items = [{"uid": f"{run}", "status": _STATUS.get(outcome, "broken"), "time": {}} for run, outcome in reversed(before)]
        cases[identity] = {"statistic": _statistic([outcome for _, outcome in before]), "items": items[:20]}
    _dump(directory / "history.json", cases)
    trend = []
    for n, run in enumerate(report.runs[:-1]):
        outcomes = [outcome for item in report.cases for name, outcome in item.strip if name == run]
        trend.append({"buildOrder": n + 1, "reportName": run, "data": _statistic(outcomes)})
    _dump(directory / "history-trend.json", trend[::-1][:20])


def _statistic(outcomes: list[str]) -> dict[str, int]:
    tally = Counter(_STATUS.get(outcome, "broken") for outcome in outcomes)
    return {name: tally[name] for name in ("failed", "broken", "skipped", "passed")} | {"unknown": 0, "total": len(outcomes)}


def _line(text: str) -> str:
    return " ".join(plain(text).split())


def _dump(path: Path, data: object) -> None:
    path.write_text(json.dumps(data, indent=1), encoding="utf-8")
