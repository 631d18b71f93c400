# SPDX-License-Identifier: BSD-2-Clause
"""Additions to pytest's JUnit file: properties of suite and cases, and results in the form that CI systems show.

GitLab shows the text of the element ``failure``, ``error`` or ``skipped``, and Jenkins its attribute ``message``. Neither shows a
property. Therefore both have the verdict and its reason.
"""

from __future__ import annotations

import re
import xml.etree.ElementTree as ET
from collections.abc import Mapping
from pathlib import Path

from harness.report.address import address, address_of
from harness.report.model import CaseReport, Report
from harness.report.verdict_line import with_verdict
from harness.results.model import FAILED, HARNESS, INFRASTRUCTURE, KNOWN, PASSED
from harness.safetext import plain
from harness.verdicts import values

_PREFIX = "fxh."
# The element of a result. A failure is the product's, an error is not, and a known issue does not fail the pipeline.
_ELEMENTS = {FAILED: "failure", KNOWN: "skipped", INFRASTRUCTURE: "error", HARNESS: "error"}
# As Maven's Surefire marks a flaky case that passed.
_FLAKY = "flakyFailure"
_COUNTED = {"tests": "testcase", "failures": "testcase/failure", "errors": "testcase/error", "skipped": "testcase/skipped"}


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
        _judge(suite, by_name)
    tree.write(path, encoding="utf-8", xml_declaration=True)


def _judge(suite: ET.Element, by_name: Mapping[tuple[str, str], CaseReport]) -> None:
    """Add the verdicts to the cases of the suite, and count its results again."""
    seen: dict[tuple[str, str], ET.Element] = {}
    for case in suite.findall("testcase"):
        found = address(case.get("classname", ""), case.get("name", ""))
        if (item := by_name.get(found)) is None:
            continue
        if found in seen:
            # pytest writes a second element if the teardown of a failed case fails, too.
            _join(seen[found], case)
            suite.remove(case)
            continue
        seen[found] = case
        again = case.find(f"properties/property[@name='{_PREFIX}verdict']") is not None
        _set(case, _properties(item))
        _mark(case, item, again=again)
    for name, tag in _COUNTED.items():
        if name in suite.attrib:
            suite.set(name, str(len(suite.findall(tag))))


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


def _mark(case: ET.Element, item: CaseReport, *, again: bool) -> None:
    """Give the result the element of its outcome, and the verdict in message and text."""
    for old in case.findall(_FLAKY):
        case.remove(old)
    if item.result.outcome == PASSED and item.verdict.kind == values.FLAKY:
        ET.SubElement(case, _FLAKY, type="flaky", message=_xml(f"[{item.verdict.kind}] {item.verdict.reason}"))
    result = next((child for child in case if child.tag in _ELEMENTS.values()), None)
    if result is None or item.result.outcome not in _ELEMENTS:
        return
    result.tag = _ELEMENTS[item.result.outcome]
    result.set("message", _xml(with_verdict(result.get("message", ""), item.verdict, again=again)))
    result.text = _xml(with_verdict(result.text or "", item.verdict, again=again))


def _join(first: ET.Element, second: ET.Element) -> None:
    """Append the texts of the second element's results to the first one's."""
    target = next((child for child in first if child.tag in _ELEMENTS.values()), None)
    for child in second:
        if child.tag in _ELEMENTS.values() and target is not None:
            target.text = "\n\n".join(filter(None, (target.text, child.get("message"), child.text)))
        elif child.tag in _ELEMENTS.values():
            first.append(child)


def _xml(text: str) -> str:
    """``text`` with a question mark for each character that XML 1.0 does not allow."""
    return re.sub("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]", "?", plain(text))
