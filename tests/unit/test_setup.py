# SPDX-License-Identifier: BSD-2-Clause
"""Tests setup steps: their time must not count as a case's time, and every report shows it."""

from __future__ import annotations

import json
import subprocess
import sys
import xml.etree.ElementTree as ET
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path

import jsonschema
import pytest
from written import CELL, case, run, save

from harness import preparing
from harness import report as reporting
from harness.console.deaths import Death
from harness.errors import BuildError, GuestDied
from harness.history import FILE, History, damage
from harness.history.schema import VERSION
from harness.images import entries
from harness.lab import kernel, ovmf, recipe
from harness.preparing import Step
from harness.report import junit, machine, mail
from harness.results import model
from harness.results.model import RunResult, SetupStep

ROOT = Path(__file__).parent.parent.parent
KERNEL = "the control guest's kernel"


class Clock:
    """The clock of :mod:`harness.preparing`. It stands still between two calls of :meth:`pass_`, however slow the machine is."""

    def __init__(self) -> None:
        self.now = 0.0

    def monotonic(self) -> float:
        return self.now

    def pass_(self, seconds: float) -> None:
        self.now += seconds


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    found = Clock()
    monkeypatch.setattr(preparing, "time", found)
    return found


@pytest.fixture
def steps(clock: Clock) -> Iterator[list[Step]]:
    found: list[Step] = []
    stop = preparing.listen(found.append)
    yield found
    stop()


def test_a_step_within_a_step_counts_once(steps: list[Step], clock: Clock) -> None:
    with preparing.step("lab"):
        clock.pass_(0.2)
        with preparing.step("kernel"):
            clock.pass_(0.4)
        with preparing.step("nothing to do"):
            pass
    assert [step.what for step in steps] == ["kernel", "lab"]
    assert [round(step.seconds, 1) for step in steps] == [0.4, 0.2]


def test_failed_steps(steps: list[Step], clock: Clock) -> None:
    """A failed build counts as setup. The time of a guest that dies during its checkpoint counts as the case's."""

    def build() -> None:
        with preparing.step("kernel"):
            clock.pass_(0.15)
            raise BuildError("make ended with 2")

    def boot() -> None:
        with preparing.step("checkpoint"):
            with preparing.step("firmware"):
                clock.pass_(0.15)
            clock.pass_(0.15)
            raise GuestDied(Death("panic", "at the disco"))

    with pytest.raises(BuildError):
        build()
    with pytest.raises(GuestDied):
        boot()
    assert [step.what for step in steps] == ["kernel", "firmware"]


def test_without_a_listener(clock: Clock) -> None:
    with preparing.step("kernel"):
        clock.pass_(0.15)


def test_builds_are_reported(steps: list[Step], clock: Clock, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The control guest's kernel, the firmware and entries of the image store: a step when built, none when found."""
    monkeypatch.setenv("FXH_STORE", str(tmp_path))
    monkeypatch.setattr("harness.lab.tools.require", lambda: None)

    def made(_: object, work: Path) -> None:
        clock.pass_(0.15)
        for name in ("whole", "fxh-out"):
            (work / name).mkdir()
            (work / name / ovmf.FILE).touch()

    def entry(work: Path) -> dict[str, object]:
        clock.pass_(0.15)
        return {}

    monkeypatch.setattr(kernel, "_build", made)
    monkeypatch.setattr(ovmf, "_build", made)
    for _ in range(2):
        kernel.obtain(recipe.load("4.20").control_kernel)
        ovmf.obtain(recipe.firmware())
        entries.get_or_create("raws", "0123", entry)
    assert [step.what for step in steps] == [KERNEL, "UEFI firmware", "a disk image, unpacked"]


# -- a run ------------------------------------------------------------------------------------------------------------

# Each step also writes how long it slept: on a busy machine that is longer.
SUITE = """
import time
from pathlib import Path
import pytest
from harness import preparing

def work(what, seconds):
    with preparing.step(what):
        begun = time.monotonic()
        time.sleep(seconds)
        slept = time.monotonic() - begun
    Path(__file__).with_name(what.split()[-1]).write_text(str(slept))

@pytest.fixture
def built():
    work("the control guest's kernel", 5)

def test_first(cell, built):
    time.sleep(0.1)

def test_second(cell):
    pass

def test_third(cell):
    work("firmware", 4)
    time.sleep(0.1)
    assert not "fails on purpose"
"""

CONFTEST = """
import time
import pytest
from harness import preparing

@pytest.hookimpl(trylast=True)
def pytest_configure(config):
    if not hasattr(config, "workerinput"):
        with preparing.step("a disk image, unpacked"):
            time.sleep(1)
"""


def fxh_run(directory: Path, *words: str) -> subprocess.CompletedProcess[str]:
    """Run the suite "slow" of ``directory``, in which a case fails on purpose."""
    argv = [sys.executable, "-m", "harness.cli", "run", str(directory / "slow"), "--guest", "control", "--type", "pv"]
    argv += ["--reports", str(directory / "reports"), *words]
    done = subprocess.run(argv, cwd=directory, capture_output=True, text=True, timeout=300)
    assert done.returncode == 1, done.stdout + done.stderr
    return done


@pytest.mark.parametrize("workers", [[], ["-n", "2"]], ids=["alone", "workers"])
def test_case_times_are_without_setup(tmp_path: Path, workers: list[str]) -> None:
    (tmp_path / "slow").mkdir()
    (tmp_path / "slow" / "test_it.py").write_text(SUITE)
    (tmp_path / "slow" / "conftest.py").write_text(CONFTEST)
    done = fxh_run(tmp_path, *workers)
    path = (tmp_path / "reports" / "latest").resolve()
    found = model.read_run(path)
    cases = {item.case: item for item in found.cases}
    kernel_, firmware = (float((tmp_path / "slow" / name).read_text()) for name in ("kernel", "firmware"))
    assert {name: item.setup for name, item in cases.items()} == {
        "test_first": pytest.approx(kernel_, abs=0.5), "test_second": 0, "test_third": pytest.approx(firmware, abs=0.5),
    }  # fmt: skip
    assert all(item.seconds < 3.5 for item in cases.values()), {name: item.seconds for name, item in cases.items()}
    image, *others = sorted(found.setup, key=lambda step: step.what)
    assert (image.what, image.case, image.seconds >= 1) == ("a disk image, unpacked", "", True)
    assert [(step.what, step.case.rpartition("::")[2].partition("[")[0], step.seconds) for step in others] == [
        ("firmware", "test_third", pytest.approx(firmware, abs=0.5)), (KERNEL, "test_first", pytest.approx(kernel_, abs=0.5)),
    ]  # fmt: skip
    lines = [line for line in done.stdout.splitlines() if "test_first" in line]
    assert lines[0].endswith(f"(and setup: {cases['test_first'].setup:.1f} s: {KERNEL})")
    suite = next(ET.parse(path / "junit.xml").getroot().iter("testsuite"))
    times = {element.get("name", "").partition("[")[0]: float(element.get("time", "")) for element in suite.iter("testcase")}
    assert max(times.values()) < 3.5
    properties = {item.get("name"): item.get("value", "") for item in suite.findall("properties/property")}
    assert float(properties[f"fxh.setup.{KERNEL}"]) == pytest.approx(kernel_, abs=0.5)


STOPPED = """
import time
from harness import preparing

def test_first(cell):
    with preparing.step("the control guest's kernel"):
        time.sleep(0.3)
    assert not "fails on purpose"

def test_second(cell):
    with preparing.step("firmware"):
        time.sleep(0.3)
"""


def test_a_resumed_run_keeps_the_setup_of_its_first_part(tmp_path: Path) -> None:
    (tmp_path / "slow").mkdir()
    (tmp_path / "slow" / "test_it.py").write_text(STOPPED)

    def part(*more: str) -> RunResult:
        fxh_run(tmp_path, *more)
        return model.read_run((tmp_path / "reports" / "latest").resolve())

    stopped = part("-x")
    whole = part("--resume", stopped.run)
    assert whole.run == stopped.run
    assert [(step.what, step.case.rpartition("::")[2].partition("[")[0]) for step in whole.setup] == [
        (KERNEL, "test_first"),
        ("firmware", "test_second"),
    ]
    assert whole.setup[:1] == stopped.setup
    assert all(item.setup > 0 for item in whole.cases)


# -- reports ----------------------------------------------------------------------------------------------------------

STEPS = (SetupStep(KERNEL, 786.0, "2026-11-25T01:00:00Z", case().nodeid), SetupStep("firmware", 3.0, "2026-11-25T01:20:00Z"))


def written(reports: Path, number: int, seconds: float = 300.0, **more: object) -> tuple[Path, RunResult]:
    done = run(number, replace(case(), setup=seconds), setup=(replace(STEPS[0], seconds=seconds), STEPS[1]), **more)
    path = save(reports, done)
    model.add_setup(path, *done.setup)
    assert model.read_run(path) == done
    return path, done


def test_setup_has_its_place_in_every_report(tmp_path: Path) -> None:
    path, done = written(tmp_path, 1, 786.0)
    (path / "junit.xml").write_text(
        f'<testsuites><testsuite name="pytest"><testcase classname="suites.boot.test_boot" name="test_boots[{CELL}]" time="4"/>'
        "</testsuite></testsuites>"
    )
    report = reporting.publish(path, done)
    assert "  786 s  the control guest's kernel\n" in mail.body(report)
    assert "firmware" not in mail.body(report), "the mail must omit short steps"
    page = (path / "index.html").read_text()
    assert f'<td class="in">{KERNEL.replace(chr(39), "&#39;")}</td><td>786.0</td>' in page
    assert "2.0 s, setup 786.0 s" in page
    data = json.loads((path / "report.json").read_text())
    jsonschema.validate(data, json.loads((ROOT / "docs/report.schema.json").read_text()))
    assert [(step["what"], step["seconds"], len(step["cases"])) for step in data["setup"]] == [
        (KERNEL, 786.0, 1),
        ("firmware", 3.0, 0),
    ]
    assert (data["cases"][0]["seconds"], data["cases"][0]["setup"]) == (2.0, 786.0)
    properties = {item.get("name"): item.get("value") for item in ET.parse(path / "junit.xml").getroot().iter("property")}
    assert (properties[f"fxh.setup.{KERNEL}"], properties["fxh.setup.seconds"]) == ("786.000", "786.000")
    junit.enrich(path / "junit.xml", reporting.build_report(path, replace(done, setup=())))
    assert KERNEL not in (path / "junit.xml").read_text()


def test_setup_drifts_by_itself(tmp_path: Path) -> None:
    """After five runs with 300 s, 786 s is a drift. The report shows it for the setup, and not for a case."""
    for number in range(1, 6):
        path, done = written(tmp_path, number)
        report = reporting.publish(path, done)
        assert [step.drift for step in report.setup] == [None, None]
    path, done = written(tmp_path, 6, 786.0)
    report = reporting.publish(path, done)
    drift = report.setup[0].drift
    assert drift is not None
    assert (drift.usual, drift.now, drift.runs) == (300.0, 786.0, 5)
    assert report.cases[0].drifts == ()
    assert "drift" not in report.sentence
    assert f"  786 s  {KERNEL}, usually 300 s\n" in mail.body(report)
    assert json.loads(machine.render(report))["setup"][0]["usual"] == 300.0
    # A run must not be compared with itself.
    assert reporting.publish(path, done).setup[0].drift == drift


def test_a_run_of_an_older_harness_is_read(tmp_path: Path) -> None:
    """The case.json, run.json and history of 0.1.0 have no setup, and 0.1.0 can read the current files."""
    old = save(tmp_path, run(1, case()))
    data = json.loads((old / "cases" / case().directory / "case.json").read_text())
    for name in ("setup", "options"):
        del data[name]
    (old / "cases" / case().directory / "case.json").write_text(json.dumps(data))
    reporting.publish(old, model.read_run(old))
    history = History(tmp_path / FILE)
    assert history.setups(99, 99) == ()
    assert VERSION == 1, "an older harness must still open the file"
    path, done = written(tmp_path, 2)
    assert reporting.publish(path, done).cases[0].verdict.kind == "passed"
    assert history.setups(99, 99) == ({KERNEL: 300.0, "firmware": 3.0},)
    assert [item.setup for item in damage.salvage(tmp_path / FILE)] == [(), (SetupStep(KERNEL, 300.0), SetupStep("firmware", 3.0))]
    assert set(asdict(done)) - set(json.loads((path / "run.json").read_text())) == {"cases", "setup"}


def test_a_line_that_was_cut_short_is_left_out(tmp_path: Path) -> None:
    path, done = written(tmp_path, 1)
    with (path / "setup.jsonl").open("a") as file:
        file.write('{"what": "a lab", "sec\n[]\n{"of": "a newer one"}\n')
    assert model.read_run(path).setup == done.setup
