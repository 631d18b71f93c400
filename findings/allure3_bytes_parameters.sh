#!/bin/sh
# SPDX-License-Identifier: BSD-2-Clause
# allure 3 hides a failed test behind another one that passed, if their parameters are bytes.
#
# Versions:  allure 3.18.0 (npm), allure-pytest 2.16.2 and pytest 9.2.0 (PyPI)
# Behavior:  allure-pytest writes each parameter of type bytes as the text "<class 'bytes'>", and a historyId that has the real values.
#            allure 3 ignores historyId, and computes its own identity from the texts. Both cases of a test with two such parameters get
#            one identity, so the later one counts as a retry of the earlier one, whose failure the report does not count.
# Output:    pytest: 1 failed, 1 passed
#            allure: {'total': 1, 'passed': 1}
# Exit code: 0 while it behaves so, 1 when it changes, 2 when a package cannot be had.
set -eu
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"
{ python3 -m venv venv && venv/bin/pip install -q --disable-pip-version-check allure-pytest==2.16.2 pytest==9.2.0 &&
  npm install --silent --no-fund --no-audit allure@3.18.0; } >/dev/null 2>&1 || {
  echo "cannot install allure 3.18.0 from npm, or allure-pytest 2.16.2 and pytest 9.2.0 from PyPI" >&2; exit 2; }
cat > test_it.py <<'PYTHON'
import pytest


@pytest.mark.parametrize("data", [b"bad", b"good"])
def test_it(data):
    assert data == b"good"
PYTHON
venv/bin/pytest -q --alluredir=results test_it.py > output || true
node_modules/.bin/allure generate results > log 2>&1
{ echo "pytest: $(sed -n 's/^\([0-9]* failed, [0-9]* passed\).*/\1/p' output)"
  python3 -c 'import json, pathlib
found = json.loads(next(pathlib.Path("allure-report").rglob("summary.json")).read_text())["stats"]
print("allure:", {name: found[name] for name in ("total", "passed", "failed") if found.get(name)})'
} | tee seen
printf "pytest: 1 failed, 1 passed\nallure: {'total': 1, 'passed': 1}\n" | cmp -s - seen
