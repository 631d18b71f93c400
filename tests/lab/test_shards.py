# SPDX-License-Identifier: BSD-2-Clause
"""Three CI machines run a shard each in a real lab, and a fourth merges them: one verdict, one mail, one write to PostgreSQL.

Each machine is a home directory of its own with an installed copy. It executes the script of docs/nightly/gitlab-ci.yml, as a GitLab
runner does: same commands, same variables, and the artifacts go to the job that merges. Only the store with the labs is shared.
"""

from __future__ import annotations

import email
import json
import re
import shutil
import socket
import subprocess
from collections import Counter
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import yaml
from aiosmtpd.controller import Controller

from harness import paths
from harness.results.model import read_run
from tests.conftest import ROOT, Installed

pytestmark = pytest.mark.slow

GITLAB = yaml.safe_load((ROOT / "docs/nightly/gitlab-ci.yml").read_text())
# Instead of all suites on FreeBSD: some cases of one suite on the control guest.
ALL = "fxh run --with-release"
SOME = "fxh run boot --guest control --type pv,pvh --scale 3 -k 'boots_to_login or was_given or control_shutdown'"
# A fresh checkout needs them, an installed copy does not.
SETUP = re.compile(r"^make |pip install")


class Inbox:
    """The messages that an SMTP server got."""

    def __init__(self) -> None:
        self.messages: list[email.message.Message] = []

    async def handle_DATA(self, server: object, session: object, envelope: Any) -> str:
        self.messages.append(email.message_from_bytes(envelope.content))
        return "250 OK"


@pytest.fixture
def inbox() -> Iterator[tuple[Inbox, str]]:
    """The inbox and the address of its server."""
    with closing(socket.socket()) as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    found = Inbox()
    server = Controller(found, hostname="127.0.0.1", port=port)
    server.start()
    yield found, f"127.0.0.1:{port}"
    server.stop()


class Machine:
    """A home directory with an installed copy. ``history`` is the URL of the shared database."""

    def __init__(self, home: Path, installed: Installed, history: str, smtp: str) -> None:
        self.home = home
        home.mkdir()
        (home / ".venv").symlink_to(installed.directory / ".venv")
        # Whatever a shard wants to send arrives in the inbox.
        (home / "fxh.toml").write_text(
            f'[mail]\nsender = "fxh@example.org"\nto = ["xen@example.org"]\nsmtp = "{smtp}"\nsecurity = "none"\nsend = true\n'
        )
        self.environment = {
            **installed.environment, "HOME": str(home), "XDG_CACHE_HOME": str(home / ".cache"), "XDG_CONFIG_HOME": str(home / ".config"),
            "FXH_STORE": str(paths.store()), "FXH_RUNTIME": str(paths.runtime()), "FXH_RUN_HISTORY": history,
        }  # fmt: skip

    def job(self, name: str, **variables: str) -> int:
        """Run the script of a job as a GitLab runner does: line by line, until one fails. Returns the status of the last line."""
        status = 0
        for line in GITLAB[name]["script"]:
            if SETUP.search(line):
                continue
            status = self.sh(line.replace(ALL, SOME), **variables)
            if status:
                break
        return status

    def sh(self, line: str, **variables: str) -> int:
        print(f"{self.home.name}$ {line}", flush=True)
        done = subprocess.run(
            ["bash", "-c", line], cwd=self.home, env=self.environment | variables, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT, text=True, timeout=3000,
        )  # fmt: skip
        lines = [text for text in done.stdout.splitlines() if not re.match(r"\d\d:\d\d:\d\d ", text)]
        print(*lines[-30:], f"[exit status {done.returncode}]", sep="\n", flush=True)
        return done.returncode

    def give_artifacts(self, name: str, other: Machine) -> None:
        """Copy what the job ``name`` keeps to another machine."""
        for pattern in GITLAB[name]["artifacts"]["paths"]:
            for path in self.home.glob(pattern):
                shutil.copytree(path, other.home / path.relative_to(self.home))


def test_three_machines_give_one_verdict_one_mail_and_one_write(
    tmp_path: Path, installed: Installed, postgres: Any, inbox: tuple[Inbox, str]
) -> None:
    box, smtp = inbox
    url = postgres.new()
    assert GITLAB["boot"]["parallel"] == 3

    def machine(name: str) -> Machine:
        return Machine(tmp_path / name, installed, url, smtp)

    machines = [machine(f"runner-{index}") for index in (1, 2, 3)]
    seen: list[Counter[str]] = []
    for index, each in enumerate(machines, 1):
        assert each.job("boot", CI_NODE_INDEX=str(index), CI_NODE_TOTAL="3") == 0
        (run,) = (each.home / f"shard-{index}/runs").glob("2*")
        found = read_run(run)
        assert found.inputs["shard"] == f"{index}/3"
        assert sum(str(case.outcome) == "passed" for case in found.cases) >= 2
        assert {str(case.outcome) for case in found.cases} <= {"passed", "skipped"}
        seen.append(Counter(case.nodeid for case in found.cases))
    union = sum(seen, Counter())
    assert set(union.values()) == {1}, "no case ran in two shards"
    assert rows(postgres, url) == 0, "a shard is not written to the shared history"
    assert box.messages == []

    # One artifact is late.
    early = machine("early")
    for each in (machines[0], machines[2]):
        each.give_artifacts("boot", early)
    assert early.job("merge") == 4
    assert rows(postgres, url) == 1
    merged = read_run((early.home / "reports/latest").resolve())
    assert merged.exit_code == 4

    last = machine("last")
    for each in machines:
        each.give_artifacts("boot", last)
    assert last.job("merge") == 0
    path = (last.home / "reports/latest").resolve()
    merged = read_run(path)
    assert Counter(case.nodeid for case in merged.cases) == union
    assert len(merged.parts) == 3
    # The new merged run replaced the incomplete one.
    (row,) = postgres.sql("SELECT run, exit_code FROM runs", url_name(url))
    assert row == (merged.run, 0)
    ((results,),) = postgres.sql("SELECT count(*) FROM results", url_name(url))
    assert results == len(union)
    report = json.loads((path / "report.json").read_text())
    print("verdict:", report["sentence"])
    assert len(list((last.home / "reports").rglob("mail.eml"))) == 1
    assert box.messages == [], "nobody asked for a mail yet"
    assert last.sh(".venv/bin/fxh report --mail --send") == 0
    (message,) = box.messages
    print("one mail:", message["To"], message["Subject"])
    print(f"one write: run {row[0]} with {results} results of {len(merged.parts)} shards")
    assert postgres.count(url)["runs"] == 1


def url_name(url: str) -> str:
    """The name of the database in a URL."""
    return url.partition("?")[0].rpartition("/")[2]


def rows(postgres: Any, url: str) -> int:
    """The number of runs in the shared history, which may have no tables yet."""
    ((table,),) = postgres.sql("SELECT to_regclass('runs')", url_name(url))
    if table is None:
        return 0
    ((count,),) = postgres.sql("SELECT count(*) FROM runs", url_name(url))
    return int(count)
