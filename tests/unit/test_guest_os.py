# SPDX-License-Identifier: BSD-2-Clause
"""A third guest OS: one module and a line in the registry, and cases run on it. Its console is replayed."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from harness.guests import registry
from harness.guests.os.base import GuestOS

HERE = Path(__file__).parent
CASES = '''
import pytest

def test_boots_and_answers(new_guest):
    guest = new_guest(memory=64).boot()
    assert [stage.name for stage in guest.console.stages] == ["kernel", "login"]
    assert guest.os.identity(guest.sh).release == "2.1"

def test_its_own_panic(guest):
    death = guest.panic(20)
    assert (death.kind, death.faulting_function) == (guest.os.panic_kind, "toy_driver_poll")

def test_hangs(guest):
    assert guest.sh("no answer") == ""

def test_is_fixed(guest): ...

@pytest.mark.needs(os="toy", toy=">=2.0")
def test_a_version_that_it_has(guest): ...

@pytest.mark.needs(toy=">=3.0")
def test_a_version_that_it_lacks(guest): ...

@pytest.mark.needs(os="freebsd")
def test_of_another_os(guest): ...
'''  # fmt: skip
KNOWN = """
[[issue]]
case = "toy/test_[hi]*s*"
cells = "toy-*"
sometimes = true
says = "another cause"
bug = "toy 2"
why = "another one"
since = 2026-01-01
review = 2099-01-01

[[issue]]
case = "toy/test_is_fixed"
cells = "toy-*"
says = "anything"
bug = "toy 3"
why = "it was broken"
since = 2026-01-01
review = 2099-01-01

[[issue]]
case = "toy/test_hangs"
cells = "toy-*"
toy = "<3.0"
says = "no answer"
bug = "toy 1"
why = "its shell ignores the command"
since = 2026-01-01
review = 2099-01-01
"""


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, object]]:
    """The results of the cases above, by name."""
    top = tmp_path_factory.mktemp("toy")
    (top / "toy").mkdir()
    (top / "toy/test_toy.py").write_text(CASES)
    (top / "known_issues.toml").write_text(KNOWN)
    argv = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "toy_os", "--scale", "0.05"]
    argv += ["--guest", "toy", "--reports", str(top / "reports"), str(top / "toy")]
    environment = {**os.environ, "PYTHONPATH": f"{HERE}:{os.environ.get('PYTHONPATH', '')}"}
    done = subprocess.run(argv, cwd=top, capture_output=True, text=True, env=environment, timeout=300)
    cases = [json.loads(path.read_text()) for path in top.glob("reports/runs/*/cases/*/case.json")]
    assert cases, done.stdout + done.stderr
    return {case["case"]: case for case in cases}


@pytest.mark.parametrize(
    ("case", "outcome", "reason"),
    [
        ("test_boots_and_answers", "passed", ""),
        ("test_its_own_panic", "passed", ""),
        ("test_hangs", "known", "known issue: toy 1: its shell ignores the command"),
        ("test_is_fixed", "failed", "the case passes, but is listed as a known issue: toy 3: it was broken"),
        ("test_a_version_that_it_has", "passed", ""),
        ("test_a_version_that_it_lacks", "skipped", "needs ToyOS >=3.0, this is 2.1; elsewhere: fxh run"),
        ("test_of_another_os", "skipped", "needs a FreeBSD guest; elsewhere: fxh run"),
    ],
)
def test_cases_run_on_a_third_os(outcomes: dict[str, dict[str, object]], case: str, outcome: str, reason: str) -> None:
    found = outcomes[case]
    assert (found["outcome"], found["cell"]) == (outcome, "toy-pvh-xen-4.20"), found["reason"]
    assert str(found["reason"]).startswith(reason)


@pytest.mark.parametrize("guest", registry.GUESTS.values(), ids=lambda guest: guest.name)
def test_each_os_says_what_the_suites_ask_of_it(guest: object) -> None:
    guest_os: GuestOS = guest.os()  # type: ignore[attr-defined]
    assert (guest_os.stages[-1].name, "kernel" in [stage.name for stage in guest_os.stages]) == ("login", True)
    subjects = ("balloon", "balloon pages", "blkfront", "clock", "disk names", "memory map", "netfront", "vcpus", "xenbus")
    assert [subject for subject in subjects if subject not in guest_os.sources] == []


def test_an_unknown_subject_still_names_the_os() -> None:
    assert registry.definition("freebsd").os().source("sound") == "FreeBSD's source for sound"


def test_no_code_outside_compares_the_name_of_an_os() -> None:
    """A guest OS is found by its name in the registry only; the suites and the harness ask it."""
    root = HERE.parent.parent
    # cell.os_name == "freebsd"     cell.guest in ("freebsd",     {"freebsd": 0.6, "linux": 0.4}     ("freebsd", IPV4): "sysctl"
    compared = re.compile(
        r"""\b(?:os|os_name|guest|name)\s*(?:==|!=|in)\s*\(?["'](?:freebsd|linux)["']|["'](?:freebsd|linux)["'](?:, \w+\))?:\s*\S"""
    )
    files = [path for top in ("harness", "suites") for path in (root / top).rglob("*.py")]
    # Types of partitions; the matrix of FreeBSD's releases in docs/suites.md.
    other = {"harness/images/tables.py", "harness/images/parttable.py", "harness/results/matrix.py"}
    found = [
        f"{path.relative_to(root)}: {line.strip()}"
        for path in files
        if str(path.relative_to(root)) not in other
        for line in path.read_text().splitlines()
        if compared.search(line)
    ]
    assert found == []
