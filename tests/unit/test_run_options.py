# SPDX-License-Identifier: BSD-2-Clause
"""The options of a run: one table for fxh, pytest, fxh.toml and re-run commands."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import typer.main

from harness.cli.main import make_app
from harness.config import load, runoptions
from harness.config.runoptions import OPTIONS, RunOptions
from harness.errors import UsageError
from harness.plugin.options import Options
from harness.xen import config, firmware

CASE = """
from pathlib import Path
from harness.plugin.state import OPTIONS

def test_options(request):
    given = request.config.stash[OPTIONS]
    Path("options").write_text(f"{given.types} {given.branch} {given.kernel} {given.scale} {request.config.args}")
"""
PASS = """
import sys, pytest
from pathlib import Path
from harness.plugin.options import Invocation
given = {"type": "pv, hvm", "branch": "--a b", "scale": 2.5}
sys.exit(pytest.main(["-q", "-p", "no:cacheprovider", *sys.argv[1:], "test_it.py"], plugins=[Invocation(given, Path("run").absolute())]))
"""


def pytest_(directory: Path, *words: str, conftest: str = "") -> subprocess.CompletedProcess[str]:
    (directory / "test_it.py").write_text(CASE)
    (directory / "conftest.py").write_text(conftest)
    argv = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "test_it.py", *words]
    return subprocess.run(argv, cwd=directory, capture_output=True, text=True, timeout=120, check=False)


def flags(command: str) -> list[tuple[str, ...]]:
    root = typer.main.get_command(make_app())
    return [tuple(one.opts) for one in root.commands[command].params if one.param_type_name == "option"]  # type: ignore[attr-defined]


def test_the_values_are_those_of_xen() -> None:
    assert set(runoptions.GUEST_TYPES) == {*config.TYPES, "pvshim"}
    assert runoptions.FIRMWARES == firmware.FIRMWARES
    for option in OPTIONS.values():
        assert option.problem(option.default) == ("", ""), option
        assert option.read(option.write(option.default)) == option.default, option
        assert option.help.endswith(".") or not option.flags


def test_fxh_run_has_the_options_of_the_table() -> None:
    assert flags("run") == [option.flags for option in OPTIONS.values() if option.flags and option.fxh]
    named = {"--guest", "--type", "--firmware", "--xen", "--kernel", "--disk", "--image", "--root"}
    assert {words[-1] for words in flags("list")} == named | {"--all", "--cases", "--json"}


def test_fxh_toml_has_only_the_settings() -> None:
    keys = {value.key for value in load(environment={}).values if value.key.startswith("run.")}
    assert {"run.guest", "run.xen_host", "run.lab_memory", "run.keep_minutes"} <= keys
    assert not {"run.kernel", "run.disk", "run.shard"} & keys
    with pytest.raises(UsageError, match=r"unknown run\.kernel"):
        load(environment={"FXH_RUN_KERNEL": "/k"})
    run = load({"run.kernel": "k", "run.guest": "freebsd, control,"}, {}).config.run
    assert (run.kernel, run.guests) == (Path("k").absolute(), ("freebsd", "control"))


def test_an_invalid_value_is_named_with_its_source() -> None:
    with pytest.raises(UsageError, match=r"--type xenpv: invalid value\n  hint: valid values: pv, pvh, hvm, pvshim"):
        load({"run.type": "pv,xenpv"}, {})
    with pytest.raises(UsageError, match=r"environment FXH_RUN_KEEP: run\.keep = 'always': invalid value"):
        load(environment={"FXH_RUN_KEEP": "always"})
    assert load(environment={"FXH_RUN_KEEP": ""}).config.run.keep == "never"


def test_a_rerun_repeats_what_is_not_the_default() -> None:
    options = Options(
        guests=("freebsd",), types=("pv", "hvm"), xens=("4.20",), disk=Path("/d"), scale=2.0, branch="main", keep="failed"
    )
    assert options.rerun_options == {"guest": "freebsd", "type": "pv,hvm", "xen": "4.20", "disk": "/d", "scale": "2.0"}
    words = {option.key: option for option in OPTIONS.values()}
    given = {name.replace("-", "_"): text for name, text in options.rerun_options.items()}
    assert {key: words[key].read(text) for key, text in given.items() if key != "scale"} == {
        "guest": ("freebsd",), "type": ("pv", "hvm"), "xen": ("4.20",), "disk": Path("/d"),
    }  # fmt: skip
    assert RunOptions() == runoptions.of_words({})


@pytest.mark.parametrize("workers", [[], ["-n", "1"]], ids=["alone", "worker"])
def test_fxh_passes_values_that_pytest_does_not_parse(tmp_path: Path, workers: list[str]) -> None:
    (tmp_path / "test_it.py").write_text(CASE)
    argv = [sys.executable, "-c", PASS, *workers]
    done = subprocess.run(argv, cwd=tmp_path, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert (tmp_path / "options").read_text().startswith("('pv', 'hvm') --a b None 2.5 ")


def test_pytest_has_the_options_with_a_prefix(tmp_path: Path) -> None:
    done = pytest_(tmp_path, "--fxh-type", "pv,pvh", "--fxh-scale=3", "-W", "error")
    assert done.returncode == 0, done.stdout + done.stderr
    assert (tmp_path / "options").read_text().startswith("('pv', 'pvh')  None 3.0 ")
    wrong = pytest_(tmp_path, "--fxh-type", "xenpv")
    assert wrong.returncode == 4
    assert "--type xenpv: invalid value" in wrong.stderr


def test_the_old_names_work_with_a_warning(tmp_path: Path) -> None:
    done = pytest_(tmp_path, "--type", "pv,pvh", "--scale=3")
    assert done.returncode == 0, done.stdout + done.stderr
    assert (tmp_path / "options").read_text() == f"('pv', 'pvh')  None 3.0 {['test_it.py']}"
    for name in ("type", "scale"):
        assert f"PytestDeprecationWarning: --{name} is deprecated: use --fxh-{name}" in done.stdout
    strict = pytest_(tmp_path, "--type", "pv", "-W", "error")
    assert strict.returncode == 4
    assert "ERROR: --type is deprecated: use --fxh-type" in strict.stderr


def test_the_old_names_are_free_for_others(tmp_path: Path) -> None:
    conftest = "def pytest_addoption(parser):\n    parser.addoption('--type', required=True)\n"
    done = pytest_(tmp_path, "--type", "theirs", conftest=conftest)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "deprecated" not in done.stdout
    assert (tmp_path / "options").read_text().startswith("() ")
