# SPDX-License-Identifier: BSD-2-Clause
"""A run as KCIDB data, the JSON in which kernel CI systems share results: checkouts, builds, tests, issues and incidents.

The format is version 5.3 of the schema that kcidb-io publishes. kcidb-io is under the GPL, so it is not imported
(docs/decisions). Nothing is sent: `kcidb-submit` sends a file.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Mapping
from typing import Any

from harness.errors import UsageError
from harness.report.model import CaseReport, Report
from harness.results.model import CaseResult, KnownIssueMatch, Outcome
from harness.results.where import CONTROL_GUEST
from harness.safetext import plain

VERSION = {"major": 5, "minor": 3}
# Of the fields log_excerpt, in characters.
_EXCERPT = 16_384
# Inputs that are the test's environment. The others (kernel, image, disks) are the build.
_ENVIRONMENT = frozenset(
    {
        "xen",
        "xen build",
        "dom0",
        "dom0 build",
        "qemu",
        "quirks",
        "harness",
        "host",
        "backend",
        "lab",
        "machine",
        "python",
        "shard",
        "run again because",
    }
)
_STATUS = {
    Outcome.PASSED: "PASS",
    Outcome.FAILED: "FAIL",
    Outcome.KNOWN: "FAIL",
    Outcome.SKIPPED: "SKIP",
    Outcome.INFRASTRUCTURE: "MISS",
    Outcome.HARNESS: "ERROR",
}
_BUGZILLA = "https://bugs.freebsd.org/bugzilla/show_bug.cgi?id="
# FreeBSD bug 280884, second half
_BUG = re.compile(r"FreeBSD bug (\d+)")
# 2026-11-25T01:00:00Z
_TIME = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ")


def check_origin(origin: str) -> None:
    """Raises UsageError if ``origin`` cannot be the name of a CI system in KCIDB."""
    if not re.fullmatch(r"[a-z0-9_]+", origin, re.ASCII):
        raise UsageError(
            f"origin {origin!r} is no name of a KCIDB origin" if origin else "a KCIDB file needs an origin",
            hint="name your CI system, with --origin NAME, in lower-case letters, digits and underscores",
        )


def render(report: Report, origin: str) -> str:
    """The run as JSON text, without the paused cases. Each id begins with ``origin``. Raises UsageError for an invalid origin."""
    check_origin(origin)
    found: dict[str, dict[str, dict[str, Any]]] = {name: {} for name in ("checkouts", "builds", "tests", "issues", "incidents")}

    def add(table: str, values: Mapping[str, Any]) -> None:
        found[table].setdefault(values["id"], {"origin": origin, **{name: item for name, item in values.items() if item != ""}})

    for item in report.cases:
        if item.result.paused:
            continue
        build = _build_inputs(report, item.result)
        mark = f"{origin}:{_digest(report.run.branch, *(f'{name}={value}' for name, value in sorted(build.items())))}"
        add("checkouts", _checkout(report, item.result, mark, build))
        add("builds", _build(mark, build))
        test = f"{origin}:{plain(report.run.run)}-{_digest(item.result.nodeid, item.result.cell)}"
        add("tests", _test(report, item, test, mark))
        if issue := item.result.known_issue:
            known = f"{origin}:{_digest(issue.line)}"
            add("issues", _issue(known, issue))
            incident = {"id": f"{origin}:{_digest(known, test)}", "issue_id": known, "issue_version": 1, "test_id": test}
            add("incidents", incident | {"present": not issue.gone})
    data = {"version": VERSION, **{name: list(rows.values()) for name, rows in found.items()}}
    return json.dumps(data, indent=1, allow_nan=False) + "\n"


def _build_inputs(report: Report, case: CaseResult) -> dict[str, str]:
    """The tested kernel, image and disks of the case."""
    return {name: value for name, value in (report.run.inputs | case.inputs).items() if name not in _ENVIRONMENT}


def _checkout(report: Report, case: CaseResult, mark: str, build: Mapping[str, str]) -> dict[str, Any]:
    """The source of a build. A kernel does not tell its commit, so each build has a separate checkout."""
    control = case.where.guest == CONTROL_GUEST
    name = plain(build.get("kernel", "") or build.get("image", "")).partition(" sha256:")[0]
    return {
        "id": mark,
        "tree_name": "" if control else plain(case.where.guest),
        "git_repository_branch": "" if control else plain(report.run.branch),
        "comment": f"control guest, not under test: {name}" if control else name,
        "valid": True,
    }


def _build(mark: str, build: Mapping[str, str]) -> dict[str, Any]:
    return {
        "id": mark,
        "checkout_id": mark,
        "architecture": "x86_64",
        "comment": "; ".join(f"{plain(name)}: {plain(value)}" for name, value in sorted(build.items())),
        "status": "PASS",
    }


def _test(report: Report, item: CaseReport, test: str, build: str) -> dict[str, Any]:
    case = item.result
    # The case itself passed if a known issue is gone.
    status = "PASS" if case.known_issue and case.known_issue.gone else _STATUS[case.outcome]
    inputs = {
        plain(name): plain(value) for name, value in sorted((report.run.inputs | case.inputs).items()) if name in _ENVIRONMENT
    }
    where = {"guest": case.where.guest, "type": case.where.type, "firmware": case.where.firmware, "host": case.where.host}
    misc = {"run": plain(report.run.run), "verdict": item.verdict.kind, "verdict_reason": plain(item.verdict.reason)}
    misc |= {"identity": plain(case.identity)} if case.identity else {}
    metrics = {plain(name): value for name, value in case.metrics.items() if math.isfinite(value)}
    return {
        "id": test,
        "build_id": build,
        "path": path(case),
        "comment": plain(case.title),
        "status": status,
        "start_time": case.started if _TIME.fullmatch(case.started) else "",
        "duration": case.seconds if math.isfinite(case.seconds) else "",
        "environment": {"comment": plain(case.cell), "misc": {name: plain(value) for name, value in where.items()} | inputs},
        "log_excerpt": plain(case.excerpt or case.reason)[-_EXCERPT:],
        "misc": misc | ({"metrics": metrics} if metrics else {}),
    }


def path(case: CaseResult) -> str:
    """The place of a case in KCIDB's tree of tests: ``fxh.boot.test_death.test_control_shutdown.halt``."""
    file, _, name = case.key.partition("::")
    function, _, parameters = name.removesuffix("]").partition("[")
    parts = ["fxh", *file.split("/"), function, parameters]
    return ".".join(re.sub(r"[^a-zA-Z0-9_-]", "_", part) for part in parts if part)


def _issue(mark: str, issue: KnownIssueMatch) -> dict[str, Any]:
    bug = _BUG.search(issue.bug)
    return {
        "id": mark,
        "version": 1,
        "report_url": f"{_BUGZILLA}{bug[1]}" if bug else "",
        "report_subject": plain(issue.bug),
        "comment": plain(issue.line),
        # An issue of Xen or of a firmware is not in the tested code, and KCIDB has no layer for it.
        **({"culprit": {"code": True, "tool": False, "harness": False}} if "FreeBSD" in issue.bug else {}),
    }


def _digest(*words: str) -> str:
    return hashlib.sha256("\0".join(words).encode("utf-8", "surrogatepass")).hexdigest()[:32]
