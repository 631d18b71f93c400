# SPDX-License-Identifier: BSD-2-Clause
"""fxh run as a user or a CI sees it: exit codes, results and reports."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import xml.etree.ElementTree as ET
from collections.abc import Iterator
from pathlib import Path

import pytest

from harness.deadline import ConditionNotMet, Deadline
from harness.lab import registry
from tests.conftest import planted_suite

FXH = [sys.executable, "-c", "from harness.cli.main import main; main()"]

# One case for each way in which a case can end.
CASES = '''
"""Planted."""
import os, signal, time
from pathlib import Path
import pytest

def test_passes(guest):
    assert guest.sh("echo 1") == "1"

def test_fails(guest):
    assert guest.sh("echo 1") == "2", "one is not two"

def test_dies(guest):
    guest.session.start(guest.os.panic_command())
    guest.sh("sleep 60")

def test_command_fails(guest):
    guest.sh("ls /nothing")

def test_shell_killed(guest):
    guest.session.start("kill -9 $$")
    guest.sh("echo 1")

def test_harness_bug(guest):
    None.nothing

def test_lab_killed(guest):
    os.kill(guest.host.lab.machine.process.pid, signal.SIGKILL)
    guest.sh("echo 1")

def test_after(guest):
    assert guest.sh("echo 1") == "1"

def test_leaks(host):
    host.transport.run(["sh", "-c", "truncate -s 1M /root/leak; losetup -f /root/leak"])

def test_skips(guest):
    pytest.skip("of its own will")

@pytest.mark.needs(os="freebsd", types=("hvm",))
def test_freebsd_only(guest):
    pass

@pytest.mark.needs(capability=("flux-compensator",))
def test_no_such_host(guest):
    pass

def test_slow(guest):
    (Path(__file__).parent / "slow").touch()
    time.sleep(600)
'''


@pytest.fixture
def suite() -> Iterator[Path]:
    with planted_suite(CASES) as file:
        yield file


def start(suite: Path, tmp_path: Path, *words: str) -> subprocess.Popen[str]:
    argv = [*FXH, "run", str(suite), "--type", "pv", "--reports", str(tmp_path / "reports"), *words]
    return subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, stdin=subprocess.DEVNULL)


def run(suite: Path, tmp_path: Path, *words: str) -> tuple[int, str, Path]:
    process = start(suite, tmp_path, *words)
    out, _ = process.communicate(timeout=300)
    return process.returncode, out, tmp_path / "reports" / "latest"


def test_all_outcomes(suite: Path, tmp_path: Path) -> None:
    code, out, latest = run(suite, tmp_path, "-k", "not slow")

    assert code == 1, out
    cases = {json.loads(p.read_text())["case"]: json.loads(p.read_text()) for p in latest.glob("cases/*/case.json")}
    assert {name: case["outcome"] for name, case in cases.items()} == {
        "test_passes": "passed",
        "test_fails": "failed",
        "test_dies": "failed",
        "test_command_fails": "failed",
        "test_shell_killed": "failed",
        "test_harness_bug": "harness",
        "test_lab_killed": "infrastructure",
        "test_after": "passed",
        "test_leaks": "failed",
        "test_skips": "skipped",
        "test_freebsd_only": "skipped",
        "test_no_such_host": "skipped",
    }
    assert "one is not two" in cases["test_fails"]["reason"]
    assert cases["test_dies"]["identity"].endswith(
        "linux-panic: Kernel panic - not syncing: sysrq triggered crash @ sysrq_handle_crash"
    )
    assert "asks for a login instead of an answer to 'echo 1'" in cases["test_shell_killed"]["reason"]
    assert "loop loop0 /root/leak" in cases["test_leaks"]["reason"]
    assert "elsewhere: fxh run" in cases["test_freebsd_only"]["reason"]
    assert "needs a host with flux-compensator" in cases["test_no_such_host"]["reason"]
    assert {"xl-dmesg.log", "xenstore.txt"} <= set(cases["test_dies"]["files"])
    assert any(name.endswith(".console.log") for name in cases["test_dies"]["files"])
    assert cases["test_passes"]["boots"][0]["stages"][-1]["name"] == "login"
    assert cases["test_passes"]["inputs"]["quirks"].startswith("CR4.PAE")
    # Each case prints a line with its outcome during the run.
    assert "HARNESS" in out
    assert "INFRASTRUCTURE" in out
    assert any("failed" in line for line in out.splitlines()[-4:])
    assert out.splitlines()[-2].startswith("5 cases that never passed; 2 of 7 judged cases passed; 2 cases could not be judged")

    page = (latest / "index.html").read_text()
    assert "2 of 7 judged cases passed" in page
    assert "Kernel panic" in page
    junit = ET.parse(latest / "junit.xml").getroot()[0]
    # pytest writes a case twice if it fails in its call and in its teardown.
    verdicts = {
        case.get("name"): p.get("value")
        for case in junit.iter("testcase")
        for p in case.iter("property")
        if p.get("name") == "fxh.verdict"
    }
    assert sorted(verdicts.values()) == ["infrastructure"] * 2 + ["never passed"] * 5 + ["new"] * 2 + ["skipped"] * 3
    assert len({case.attrib["name"] for case in junit.iter("testcase")}) == 12
    results = [json.loads(p.read_text()) for p in (latest / "allure").glob("*-result.json")]
    assert len(results) == 12
    assert {tuple(p.values()) for r in results for p in r["parameters"]} == {("cell", "control-pv-xen-4.20")}
    assert any(a["name"].endswith(".console.log") for r in results for a in r.get("attachments", []))
    assert (latest / "allure" / "environment.properties").is_file()


@pytest.mark.parametrize(
    ("keyword", "code"),
    [("passes", 0), ("harness_bug", 3), ("lab_killed", 4), ("freebsd_only", 5), ("nothing_of_that_name", 5)],
)
def test_exit_code(suite: Path, tmp_path: Path, keyword: str, code: int) -> None:
    found, out, _ = run(suite, tmp_path, "-k", keyword)
    assert found == code, out


@pytest.mark.parametrize(
    "words", [["--guest", "minix"], ["--type", "xenpv"], ["--xen", "3.0"], ["--kernel", "/none", "--disk", "/none"], ["--nonsense"]]
)
def test_usage(suite: Path, tmp_path: Path, words: list[str]) -> None:
    code, out, _ = run(suite, tmp_path, *words)
    assert code == 2, out
    assert words[0].lstrip("-") in out


def test_syntax_error_in_a_suite_is_a_harness_error(suite: Path, tmp_path: Path) -> None:
    suite.write_text("def test_x(:")
    assert run(suite, tmp_path)[0] == 3


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGKILL])
def test_killed_in_the_middle_leaves_nothing(suite: Path, tmp_path: Path, how: int) -> None:
    before = set(registry.names())
    process = start(suite, tmp_path, "-k", "passes or slow")
    latest = tmp_path / "reports" / "latest"

    def under_way() -> dict[str, int]:
        found = {name: registry.read(name) for name in set(registry.names()) - before}
        pids = {name: record.qemu_pid for name, record in found.items() if record and record.owner_pid == process.pid}
        if not (pids and (suite.parent / "slow").exists()):
            raise ConditionNotMet(f"{len(pids)} labs")
        return pids

    labs = Deadline(120).wait("the second case to run", under_way)
    process.send_signal(how)
    process.communicate(timeout=120)

    def all_gone() -> None:
        alive = [pid for pid in labs.values() if Path(f"/proc/{pid}").exists()]
        if alive:
            raise ConditionNotMet(f"QEMU {alive} lives")

    Deadline(60).wait("QEMU to end", all_gone)
    if how == signal.SIGINT:
        assert process.returncode == 130
        assert (latest / "index.html").is_file()
    # Finished results are kept. Leftovers are found and removed.
    assert [json.loads(p.read_text())["outcome"] for p in latest.glob("cases/*/case.json")][:1] == ["passed"]
    subprocess.run([*FXH, "lab", "list"], check=True, capture_output=True)
    assert not [name for name in labs if registry.directory(name).exists() or registry.sockets(name).exists()]


KNOWN = """
[[issue]]
case = "planted/{case}"
cells = "control-*"
says = "{says}"
bug = "bug 1"
why = "it is so"
since = 2026-01-01
review = 2099-01-01
"""


def test_known_issues_are_strict(suite: Path, tmp_path: Path) -> None:
    entries = [("test_fails", "one is not two"), ("test_passes", "never"), ("test_command_fails", "something else")]
    (suite.parent.parent / "known_issues.toml").write_text("".join(KNOWN.format(case=case, says=says) for case, says in entries))

    code, out, latest = run(suite, tmp_path, "-k", "fails or passes")

    cases = {json.loads(p.read_text())["case"]: json.loads(p.read_text()) for p in latest.glob("cases/*/case.json")}
    assert {name: case["outcome"] for name, case in cases.items()} == {
        "test_fails": "known", "test_passes": "failed", "test_command_fails": "failed",
    }, out  # fmt: skip
    assert code == 1
    assert "Remove its entry" in cases["test_passes"]["reason"]
    assert "bug 1: it is so" in cases["test_fails"]["reason"]
    assert "one is not two" in cases["test_fails"]["reason"]
    assert run(suite, tmp_path, "-k", "test_fails and not command")[0] == 0


def test_two_workers(suite: Path, tmp_path: Path) -> None:
    code, out, latest = run(suite, tmp_path, "-n", "2", "-k", "passes or after or dies")
    assert code == 1, out
    assert len(list(latest.glob("cases/*/case.json"))) == 3
    assert (latest / "index.html").is_file()
