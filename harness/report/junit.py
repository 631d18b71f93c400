# SPDX-License-Identifier: BSD-2-Clause
"""Additions to pytest's JUnit file: inputs as properties of the suite, verdict and cell as properties of each case."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ET
from pathlib import Path

from harness.report.address import address, address_of
from harness.report.model import CaseReport, Report
from harness.safetext import plain

_PREFIX = "fxh."


def enrich(path: Path, report: Report) -> None:
    """Rewrite ``path``, pytest's ``junit.xml``. Replaces the properties of an earlier call. Leaves a broken file unchanged."""
    try:
        tree = ET.parse(path)
    except (ET.ParseError, OSError):
        return
    by_name = {address_of(item.result): item for item in report.cases}
    for suite in tree.getroot().iter("testsuite"):
        _set(
            suite,
            {"run": report.run.run, "verdict": report.sentence, "baseline": report.baseline} | _setup(report) | dict(report.inputs),
        )
        for case in suite.iter("testcase"):
            item = by_name.get(address(case.get("classname", ""), case.get("name", "")))
            if item is not None:
                _set(case, _properties(item))
    tree.write(path, encoding="utf-8", xml_declaration=True)


def _setup(report: Report) -> dict[str, str]:
    """Seconds of each setup step. The times of the cases do not include them."""
    return {f"setup.{item.what}": f"{item.seconds:.3f}" for item in report.setup}


def _properties(item: CaseReport) -> dict[str, str]:
    found = {
        "verdict": item.verdict.kind,
        "verdict.reason": item.verdict.reason,
        "cell": item.result.cell,
        "identity": item.result.identity,
        "reference": item.verdict.reference,
        "setup.seconds": f"{item.result.setup:.3f}" if item.result.setup else "",
    }
    found |= {f"input.{name}": value for name, value in item.result.inputs.items()}
    found |= {f"metric.{name}": f"{value:.6g}" for name, value in item.result.metrics.items()}
    return {name: value for name, value in found.items() if value}


def _set(element: ET.Element, values: dict[str, str]) -> None:
    properties = element.find("properties")
    if properties is None:
        properties = ET.Element("properties")
        element.insert(0, properties)
    for old in [p for p in properties if p.get("name", "").startswith(_PREFIX)]:
        properties.remove(old)
    for name, value in values.items():
        ET.SubElement(properties, "property", name=_xml(_PREFIX + name), value=_xml(value))


def _xml(text: str) -> str:
    """``text`` with a question mark for each character that XML 1.0 does not allow."""
    return re.sub("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]", "?", plain(text))
