# SPDX-License-Identifier: BSD-2-Clause
"""fxh power, fxh prepare, and what fxh hosts and fxh doctor say of a host's equipment. Nothing listens at the host's address."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from harness.cli.main import make_app
from harness.errors import HarnessError
from harness.hosts.record import UNPREPARED, HostRecord

TOML = """
[hosts.p]
address = "root@127.0.0.1:1"
prepare = ["sh", "-c", "echo no mirror >&2; exit 3"]
serial = ["sh", "-c", "echo busy; exit 1"]
[hosts.p.power]
cycle = ["true"]
status = ["echo", "Chassis Power is on"]
[hosts.q]
address = "root@127.0.0.1:1"
"""


@pytest.fixture(autouse=True)
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "fxh.toml").write_text(TOML)
    monkeypatch.setenv("FXH_CONFIG", str(tmp_path / "fxh.toml"))
    monkeypatch.setenv("FXH_STORE", str(tmp_path / "store"))


def fxh(*words: str) -> Result:
    return CliRunner().invoke(make_app(), [*words])


def test_power() -> None:
    assert fxh("power", "status", "p").output == "p: on\n"
    assert fxh("power", "cycle", "p").output == "p: on\n"
    for words, message in (
        (("cycle", "q"), "q has no power commands"),
        (("jump", "p"), "jump: no such action"),
        (("off", "p"), r"hosts.p.power.off is not set"),
    ):
        error = fxh("power", *words).exception
        assert isinstance(error, HarnessError)
        assert error.message == message


def test_a_failed_preparation_is_shown_until_somebody_returns_the_host() -> None:
    failed = fxh("prepare")
    assert failed.exit_code == 4
    assert "p: 127.0.0.1 port 1: [Errno 111] Connection refused" in failed.output
    assert "its preparation failed: 127.0.0.1 port 1" in fxh("hosts", "p").output
    failed = fxh("prepare")
    assert failed.exit_code == 4
    assert "p: hosts.p.prepare: sh failed with exit status 3: no mirror\n  hint: the operator of p must" in failed.output
    assert "its preparation failed: hosts.p.prepare: sh failed" in fxh("hosts", "p").output
    assert "p: is used again" in fxh("hosts", "p", "--return").output
    assert "set aside" not in fxh("hosts", "p").output
    assert "p: was not set aside" in fxh("hosts", "p", "--return").output
    assert isinstance(fxh("hosts", "--return").exception, HarnessError)
    assert isinstance(fxh("prepare", "q").exception, HarnessError)


def test_the_doctor_checks_the_equipment() -> None:
    HostRecord("p").set_aside(UNPREPARED, "no mirror")
    checks = {check["name"]: check for check in json.loads(fxh("doctor", "p", "--json").output)["p"]}
    assert {name: check["status"] for name, check in checks.items()} == {
        "ssh": "fail", "set aside": "fail", "power": "ok", "serial": "fail",
    }  # fmt: skip
    assert checks["serial"]["detail"] == "hosts.p.serial closed at once: busy"
    assert "fxh prepare p" in checks["set aside"]["hint"]


def test_the_configuration_is_shown_as_json() -> None:
    rows = {row["key"]: row["value"] for row in json.loads(fxh("config", "show", "hosts.p", "--json").output)}
    assert rows["hosts.p.power"] == {"cycle": ["true"], "status": ["echo", "Chassis Power is on"]}
