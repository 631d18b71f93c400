# SPDX-License-Identifier: BSD-2-Clause
"""Nightly jobs: steps, JSON lines and mails; and the examples in docs/nightly."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import yaml

from harness import mailer
from harness.config.runoptions import RunOptions
from harness.config.schema import Config, HostConfig, MailConfig, NightlyConfig
from harness.errors import InfrastructureError, UsageError
from harness.images import entries
from harness.lab import prune
from harness.nightly import mail, night
from harness.nightly.plan import NightlyStep, plan, to_prepare

DOCS = Path(__file__).parent.parent.parent / "docs" / "nightly"


def sh(name: str, script: str, **more: Any) -> NightlyStep:
    return NightlyStep(name, ("sh", "-c", script), **more)


def run(tmp_path: Path, *steps: NightlyStep, hours: float = 1.0) -> tuple[night.Night, list[dict[str, Any]]]:
    lines: list[str] = []
    return night.run_steps(steps, tmp_path, hours, lines.append), [json.loads(line) for line in lines]


def test_the_plan_follows_the_configuration(tmp_path: Path) -> None:
    assert [step.name for step in plan(NightlyConfig(), MailConfig(), tmp_path)] == ["run", "report", "prune"]
    full = plan(
        NightlyConfig(source=str(tmp_path), build=("--src", "{source}"), run=("boot", "-n", "2")),
        MailConfig(to=("a@x", "b@x")),
        tmp_path,
    )
    assert [step.name for step in full] == ["update", "build", "run", "report", "prune"]
    assert full[0].argv == ("git", "-C", str(tmp_path), "pull", "--ff-only", "--quiet")
    assert full[3].argv[-6:] == ("report", "--mail", "--to", "a@x, b@x", "--reports", str(tmp_path))
    assert full[1].argv[-4:] == ("image", "build", "--src", str(tmp_path))
    with pytest.raises(UsageError, match="no such directory"):
        plan(NightlyConfig(source="/none"), MailConfig(), tmp_path)


def test_the_hosts_of_the_run_are_prepared_before_it(tmp_path: Path) -> None:
    def names(run: tuple[str, ...], default: str = "") -> tuple[str, ...]:
        hosts = {
            name: HostConfig(name, name=name, tags=tags, prepare=prepare)
            for name, tags, prepare in (("a", ("x",), ("p",)), ("b", ("x",), ()), ("c", (), ("p",)))
        }
        return to_prepare(Config(RunOptions(host=default), hosts, nightly=NightlyConfig(run=run)))

    assert names(("--xen-host", "tag:x, c")) == ("a", "c")
    assert names(("boot", "--xen-host=b")) == ()
    assert names((), "c") == ("c",)
    assert names(("--xen-host",)) == names(()) == ()
    steps = plan(NightlyConfig(), MailConfig(), tmp_path, ("a", "c"))
    assert [step.name for step in steps] == ["prepare", "run", "report", "prune"]
    assert steps[0].argv[-2:] == ("prepare", "a,c")
    assert not steps[0].needed, "the other hosts serve the run"


def test_each_night_has_a_walk_with_a_seed_of_its_own(tmp_path: Path) -> None:
    def words(**config: Any) -> tuple[str, ...]:
        return next(step.argv for step in plan(NightlyConfig(**config), MailConfig(), tmp_path) if step.name == "run")

    first, second = words(run=("lifecycle",), walk="10m"), words(run=("lifecycle",), walk="10m")
    at = first.index("--walk")
    assert first[at : at + 3] == ("--walk", "10m", "--walk-seed")
    assert int(first[at + 3]) > 0
    assert first[at + 3] != second[at + 3]
    assert "--walk" not in words(), "no walk by default"
    assert words(run=("lifecycle", "--walk=1h"), walk="10m").count("--walk-seed") == 0


def test_a_verdict_is_not_a_failure_of_the_job(tmp_path: Path) -> None:
    done, results = run(tmp_path, sh("run", "exit 1", verdicts=(1,)), sh("report", "exit 1", repeats="run"))
    assert [line["status"] for line in results] == ["product", "ok"]
    assert (done.exit_code, done.failed) == (1, ())
    kept = [json.loads(line) for line in (tmp_path / "nightly/nightly.jsonl").read_text().splitlines()]
    assert kept == results
    assert set(results[0]) == {"night", "step", "status", "exit_code", "seconds", "started", "why", "log"}


def test_a_failed_needed_step_skips_the_rest_but_not_the_cleanup(tmp_path: Path) -> None:
    done, results = run(
        tmp_path, sh("build", "echo no space left; exit 7", needed=True), sh("run", "touch ran"), sh("prune", "true", always=True)
    )
    assert [line["status"] for line in results] == ["failed", "skipped", "ok"]
    assert results[0]["why"] == "exit code 7: no space left"
    assert results[1]["why"] == "skipped because build failed"
    assert done.exit_code == 4
    message = mail.compose(done, MailConfig(to=("devs@x",), infrastructure_to=("ops@x",)), "m")
    assert message["To"] == "ops@x"
    assert message["Subject"].startswith("[fxh infrastructure] nightly job ")
    assert "no space left" in message.get_content()
    assert "says nothing about FreeBSD" in message.get_content()


def test_a_step_has_a_time_limit_and_a_missing_command_is_reported(tmp_path: Path) -> None:
    begun = time.monotonic()
    _, results = run(tmp_path, sh("run", "sleep 90"), NightlyStep("report", ("/no/such/thing",)), hours=0.3 / 3600)
    assert time.monotonic() - begun < 60
    assert "did not end within" in results[0]["why"]
    assert results[1]["why"] == "cannot start /no/such/thing: No such file or directory"


def test_jobs_do_not_overlap(tmp_path: Path) -> None:
    code = (
        "import sys,pathlib;from harness.nightly import night;from harness.nightly.plan import NightlyStep\n"
        "night.run_steps([NightlyStep('run',('sh','-c','echo;sleep 3'))],pathlib.Path(sys.argv[1]),1,print)"
    )
    other = subprocess.Popen([sys.executable, "-c", code, str(tmp_path)])
    while not list((tmp_path / "nightly").glob("*/run.log")):
        time.sleep(0.05)
    with pytest.raises(InfrastructureError, match="another nightly job is running"):
        run(tmp_path, sh("run", "true"))
    assert other.wait(60) == 0


def test_mail_is_always_written_and_sent_only_if_configured(tmp_path: Path) -> None:
    done, _ = run(tmp_path, sh("run", "exit 3"))
    config = MailConfig(send=False, smtp="127.0.0.1:1")
    message = mail.compose(done, config, "m")
    mailer.deliver(message, config, tmp_path / "a.eml")
    assert b"a bug in the harness" in (tmp_path / "a.eml").read_bytes()
    with pytest.raises(InfrastructureError, match="Connection refused") as caught:
        mailer.deliver(message, MailConfig(send=True, smtp="127.0.0.1:1"), tmp_path / "b.eml")
    assert f"the mail is kept in {tmp_path / 'b.eml'}" in caught.value.hint
    assert (tmp_path / "b.eml").exists()


def test_the_reason_has_the_last_informative_line() -> None:
    assert night.failure_reason("a\nno host works\n=====\nreport: /x\n\n", 4) == "infrastructure: no host works"
    assert night.failure_reason("", 9) == "exit code 9"


def test_old_logs_are_removed(tmp_path: Path) -> None:
    for n in range(5):
        (tmp_path / "nightly" / f"2026010{n}").mkdir(parents=True)
    night.prune(tmp_path, 2)
    assert sorted(path.name for path in (tmp_path / "nightly").iterdir()) == ["20260103", "20260104"]


# -- the examples -----------------------------------------------------------------------------------------------------


def test_gitlab_example() -> None:
    jobs = yaml.safe_load((DOCS / "gitlab-ci.yml").read_text())
    stages = jobs.pop("stages")
    jobs.pop("variables")
    for job in jobs.values():
        assert job["stage"] in stages
        assert all(isinstance(line, str) for line in job["script"])
    assert jobs["merge"]["needs"] == ["boot"]
    assert "$CI_NODE_INDEX/$CI_NODE_TOTAL" in jobs["boot"]["script"][-1]


def test_github_example() -> None:
    flow = yaml.safe_load((DOCS / "github-actions.yml").read_text())
    assert set(flow) == {"name", "on", "permissions", "env", "concurrency", "jobs"}
    for job in flow["jobs"].values():
        assert job["runs-on"]
        assert all(("run" in step) != ("uses" in step) for step in job["steps"])
    assert flow["jobs"]["merge"]["needs"] in flow["jobs"]


WORKFLOW = DOCS.parent.parent / ".github/workflows/ci.yml"
SCHEMAS = {
    "gitlab-ci.yml": "vendor.gitlab-ci",
    "github-actions.yml": "vendor.github-workflows",
    "ci.yml": "vendor.github-workflows",
}


def fits(file: Path, kind: str) -> subprocess.CompletedProcess[str]:
    """Check a file with the schema that check-jsonschema has for this kind of CI. It needs no network."""
    argv = [sys.executable, "-m", "check_jsonschema", "--builtin-schema", SCHEMAS[kind], str(file)]
    return subprocess.run(argv, capture_output=True, text=True, timeout=120)


@pytest.mark.parametrize("file", [DOCS / "gitlab-ci.yml", DOCS / "github-actions.yml", WORKFLOW], ids=lambda file: file.name)
def test_the_ci_examples_follow_the_schema_of_their_service(file: Path, tmp_path: Path) -> None:
    done = fits(file, file.name)
    assert done.returncode == 0, done.stdout + done.stderr
    right, wrong = ("  script:", "  scripts:") if file.name == "gitlab-ci.yml" else ("runs-on:", "run-on:")
    assert right in file.read_text()
    (tmp_path / "wrong.yml").write_text(file.read_text().replace(right, wrong))
    assert fits(tmp_path / "wrong.yml", file.name).returncode == 1, "the schema finds a mistake"


def test_ci_caches_what_takes_minutes_to_build() -> None:
    known = {*prune.KINDS, *entries.KINDS, *entries.CACHES, "names"}
    for file in (DOCS / "gitlab-ci.yml", DOCS / "github-actions.yml", DOCS.parent.parent / ".github/workflows/ci.yml"):
        cached = set(re.findall(r"^ *(?:- )?\.store/(\w+)$", file.read_text(), re.MULTILINE))
        assert {"labs", "control"} <= cached <= known, file


def test_cron_example() -> None:
    lines = [line for line in (DOCS / "crontab").read_text().splitlines() if line and not line.startswith("#")]
    assert lines[0] == 'MAILTO=""'
    minute, hour, *rest = lines[1].split(None, 5)
    assert (int(minute) < 60, int(hour) < 24, rest[:3]) == (True, True, ["*", "*", "*"])
    assert "%" not in rest[3], "cron takes % for a line end"
    subprocess.run(["sh", "-n", "-c", rest[3]], check=True)


def test_jenkins_example_has_its_brackets_in_pairs() -> None:
    text = (DOCS / "Jenkinsfile").read_text()
    for left, right in ("{}", "()"):
        assert text.count(left) == text.count(right)
    assert '--shard "$SHARD/3"' in text


@pytest.mark.skipif(not shutil.which("systemd-analyze"), reason="needs systemd-analyze")
def test_systemd_units() -> None:
    units = [str(DOCS / f"fxh-nightly.{kind}") for kind in ("service", "timer")]
    done = subprocess.run(["systemd-analyze", "verify", *units], capture_output=True, text=True)
    ours = [line for line in done.stderr.splitlines() if "fxh-nightly" in line]
    assert not ours, ours
    # make exits with 2 for every failure of fxh. Exit code 1 is not a failure of the unit.
    unit = Path(units[0]).read_text()
    assert re.search(r"^SuccessExitStatus=1$", unit, re.MULTILINE)
    # newuidmap, which a lab build without root needs, would fail.
    assert not re.search(r"^NoNewPrivileges=yes$", unit, re.MULTILINE)
    page = (DOCS.parent / "hosts.md").read_text()
    for name in ("User", "WorkingDirectory"):
        value = re.search(rf"^{name}=(.*)$", unit, re.MULTILINE)
        assert value is not None
        assert re.search(rf"^    (?:useradd|install) .*(?<=\s){re.escape(value[1])}(?:\s|$)", page, re.MULTILINE), name
    assert re.search(r"^ExecStart=/bin/sh -c 'exec .venv/bin/fxh nightly'$", unit, re.MULTILINE)
    calendar = next(line.partition("=")[2] for line in Path(units[1]).read_text().splitlines() if line.startswith("OnCalendar="))
    subprocess.run(["systemd-analyze", "calendar", calendar], check=True, capture_output=True)


def test_every_command_in_the_examples_exists() -> None:
    from typer.main import get_command

    from harness.cli.main import make_app

    verbs = set(get_command(make_app()).commands)  # type: ignore[attr-defined]
    for path in DOCS.iterdir():
        for line in path.read_text().splitlines():
            if "bin/fxh " in line:
                assert line.split("bin/fxh ")[1].split()[0].strip("'") in verbs, line
    targets = {line.partition(":")[0] for line in (DOCS.parent.parent / "Makefile").read_text().splitlines() if ":" in line}
    assert {"nightly", "setup"} <= targets
