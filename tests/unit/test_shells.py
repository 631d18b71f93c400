# SPDX-License-Identifier: BSD-2-Clause
"""Tests completion in real shells, and the manual page in real viewers."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pexpect
import pytest

from tests.conftest import Installed

PROMPT = "fxh-test> "
# For each shell: the command that starts it without the user's files, and the commands that load the completion.
START = {
    "bash": (["--norc", "--noprofile"], "PS1='{prompt}'; source {script}"),
    "zsh": (["-f"], "PS1='{prompt}'; fpath=({directory} $fpath); autoload -Uz compinit; compinit -u -d {directory}/dump"),
    "fish": (["--no-config"], "function fish_prompt; echo -n '{prompt}'; end; source {script}"),
}
# The input before TAB, and the completions that the shell must show.
CASES = {
    "fxh r": ("run", "report", "repro"),
    "fxh lab checkp": ("fxh lab checkpoint",),
    "fxh run root": ("fxh run root_mount",),
    "fxh run --firm": ("fxh run --firmware",),
    "fxh run --type pv,pv": ("pv,pvh", "pv,pvshim"),
    "fxh run --image m": ("mine", "mother"),
    "fxh run --disk ro": ("fxh run --disk root.img",),
}
ANSI = re.compile(r"\x1b(\[[0-9;?>=]*[ -/]*[@-~]|\][^\x07\x1b]*(\x07|\x1b\\)|[()][A-Z0-9]|[=>])|[\r\x0f]")


@pytest.fixture(params=sorted(START))
def shell(request: pytest.FixtureRequest, installed: Installed, tmp_path: Path) -> Iterator[pexpect.spawn]:
    """An interactive shell with the completion of the installed fxh."""
    name = str(request.param)
    if not shutil.which(name):
        pytest.skip(f"needs {name}")
    script = tmp_path / ("_fxh" if name == "zsh" else "fxh.completion")
    script.write_text(installed.fxh("completion", name))
    (tmp_path / "root.img").touch()
    environment = {
        **installed.environment,
        "PATH": f"{installed.directory / '.venv/bin'}:{os.environ['PATH']}",
        "FXH_STORE": str(tmp_path / "store"),
        "HOME": str(tmp_path),
        "TERM": "vt100",
    }
    (tmp_path / "store/names").mkdir(parents=True)
    for image in ("mine", "mother"):
        (tmp_path / "store/names" / image).write_text("0123")
    words, setup = START[name]
    child = pexpect.spawn(name, words, env=environment, cwd=str(tmp_path), encoding="utf-8", timeout=120, dimensions=(50, 200))
    child.sendline(setup.format(prompt=PROMPT, script=script, directory=tmp_path))
    child.sendline("echo ready$((40+2))" if name != "fish" else "echo ready(math 40+2)")
    child.expect("ready42")
    child.expect(PROMPT)
    yield child
    child.close(force=True)


def completed(shell: pexpect.spawn, typed: str, *expected: str) -> None:
    """Type, press TAB, and wait until the shell shows all expected words."""
    shell.send(f"{typed}\t")
    if shell.command.endswith("bash"):
        shell.send("\t")  # the second lists what the first cannot decide
    seen = ""
    while not all(re.search(rf"(?<![\w-]){re.escape(word)}(?![\w-])", seen) for word in expected):
        try:
            seen = ANSI.sub("", seen + shell.read_nonblocking(4096, timeout=120))
        except pexpect.TIMEOUT:
            pytest.fail(f"{typed!r} and TAB gave {seen!r}, not {expected}")


def test_tab(shell: pexpect.spawn) -> None:
    for typed, expected in CASES.items():
        completed(shell, typed, *expected)
        shell.sendcontrol("u")


def test_an_unknown_shell_is_named(installed: Installed) -> None:
    done = installed.run("fxh", "completion", "tcsh")
    assert done.returncode == 2
    assert "tcsh" in done.stderr


def test_the_page_names_every_command_and_option(installed: Installed) -> None:
    source = installed.fxh("man")
    page = re.sub(r"\\&|\\(?=-)", "", source)
    for command in ("run", "lab up", "image build", "repro export", "nightly"):
        help_text = installed.fxh(*command.split(), "--help")
        assert f'.SS "fxh {command}' in page
        section = page.partition(f'.SS "fxh {command}')[2].partition(".SS")[0]
        options = set(re.findall(r"--[a-z][a-z0-9-]+", help_text.partition("Options:")[2])) - {"--help"}
        assert options
        assert not [option for option in options if option not in section], command
    assert ".SH EXIT STATUS" in page


@pytest.mark.skipif(not shutil.which("groff"), reason="needs groff")
def test_the_page_is_sound(installed: Installed, tmp_path: Path) -> None:
    path = tmp_path / "fxh.1"
    path.write_text(installed.fxh("man"))
    done = subprocess.run(["groff", "-man", "-Tutf8", "-P-cbou", "-ww", "-rLL=100n", str(path)], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    assert "fxh - integration tests for FreeBSD under Xen" in done.stdout
    assert "--dom0-kernel <path>" in done.stdout
