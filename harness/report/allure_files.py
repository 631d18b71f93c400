"""What allure's results lack: the environment, and categories by our outcomes."""

from __future__ import annotations

import json
from pathlib import Path

from harness.results.model import RunResult

# allure sorts a result into the first category whose regex matches its message, which ours begin with "[outcome]".
_CATEGORIES = (
    ("Product: the guest died or did the wrong thing", "failed", r".*\[failed\].*|.*assert.*|.*AssertionError.*"),
    ("Infrastructure: nothing was learned", "infrastructure", r".*\[infrastructure\].*"),
    ("Harness: a bug of ours", "harness", r".*\[harness\].*"),
)


def write(directory: Path, run: RunResult) -> None:
    """Write ``environment.properties`` and ``categories.json`` into allure's results."""
    seen: dict[str, str] = dict(run.inputs)
    for case in run.cases:
        seen |= case.inputs
    lines = (f"{key.replace(' ', '_')}={value.replace(chr(10), ' ')}" for key, value in sorted(seen.items()))
    (directory / "environment.properties").write_text("\n".join(lines) + "\n", encoding="utf-8")
    categories = [
        {"name": name, "matchedStatuses": ["failed", "broken"], "messageRegex": f"(?s){regex}"} for name, _, regex in _CATEGORIES
    ]
    (directory / "categories.json").write_text(json.dumps(categories, indent=1), encoding="utf-8")
