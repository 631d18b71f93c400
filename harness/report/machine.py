# SPDX-License-Identifier: BSD-2-Clause
"""The report as JSON (docs/report.schema.json)."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import Any

from harness.report.model import CaseReport, ComplaintReport, Report, SetupReport
from harness.verdicts.values import Verdict

SCHEMA = 1


def render(report: Report) -> str:
    """The content of ``report.json``."""
    run = report.run
    data: dict[str, Any] = {
        "schema": SCHEMA,
        "run": run.run,
        "started": run.started,
        "ended": run.ended,
        "exit_code": run.exit_code,
        "branch": run.branch,
        "command": run.command,
        "options": run.options,
        "inputs": run.inputs,
        "sentence": report.sentence,
        "baseline": report.baseline,
        "note": report.note,
        "changed": [dict(zip(("input", "before", "now"), change, strict=True)) for change in report.changed],
        "gone": [{"case": case, "cell": cell} for case, cell in report.gone],
        "complaints": [_complaint(item) for item in report.complaints],
        "known_complaints": [_complaint(item) for item in report.known_complaints],
        "setup": [_setup(item) for item in report.setup],
        "cases": [_case(item) for item in report.cases],
    }
    return json.dumps(data, indent=1) + "\n"


def _complaint(item: ComplaintReport) -> dict[str, Any]:
    return asdict(item.complaint) | {"cell": item.cell, "cases": [case.key for case in item.cases]}


def _setup(item: SetupReport) -> dict[str, Any]:
    return {
        "what": item.what,
        "seconds": item.seconds,
        "started": item.started,
        "cases": [{"case": case.key, "cell": case.cell} for case in item.cases],
        "usual": item.drift.usual if item.drift else None,
    }


def _case(item: CaseReport) -> dict[str, Any]:
    case = item.result
    return {
        "case": case.key,
        "title": case.title,
        "suite": case.suite,
        "cell": case.cell,
        "where": asdict(case.where),
        "outcome": case.outcome,
        "verdict": _verdict(item.verdict),
        "reason": case.reason,
        "identity": case.identity,
        "death": asdict(case.death) if case.death else None,
        "known_issue": asdict(case.known_issue) if case.known_issue else None,
        "excerpt": case.excerpt,
        "seconds": case.seconds,
        "setup": case.setup,
        "started": case.started,
        "inputs": case.inputs,
        "metrics": case.metrics,
        "boots": [asdict(boot) for boot in case.boots],
        "drifts": [asdict(drift) | {"worse": drift.worse} for drift in item.drifts],
        "files": [f"cases/{case.directory}/{name}" for name in case.files],
        "again": item.rerun,
    }


def _verdict(verdict: Verdict) -> dict[str, Any]:
    data = asdict(verdict)
    return data | {"otherwise": data.pop("different_failure")}
