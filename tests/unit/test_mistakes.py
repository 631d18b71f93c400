# SPDX-License-Identifier: BSD-2-Clause
"""Common mistakes on the command line: each error names the value and the fix, and nothing is created or started."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import typer.main

from harness import paths
from harness.cli.main import main, make_app
from harness.errors import ExitCode, InfrastructureError, TransportError, UsageError
from harness.hosts.connect import direct
from harness.images import makefs
from harness.lab.factory import LabSpec, make

COMMAND = typer.main.get_command(make_app())


@pytest.mark.parametrize(
    ("words", "message", "hint"),
    [
        ("run nosuch", "no suite 'nosuch'", "valid names: "),
        ("list boot nosuch", "no suite 'nosuch'", "valid names: "),
        ("run boot --type pvx", "--type pvx: invalid value", "valid values: pv, "),
        ("run boot -n -1", "--workers -1: invalid value", "use a number from 0 to 1000"),
        ("run boot --reports {file}/x", "--reports {file}/x: Not a directory", "that you can write to"),
        ("run --resume nosuch", "no run 'nosuch'", "`fxh history`"),
        ("run boot --scale nan", "--scale nan: invalid value", "use a number above 0"),
        ("run boot --walk 10x", "--walk 10x: invalid value", "write 90s"),
        ("boot --type foo", "--type foo: invalid value", "valid values: pv, "),
        ("boot --type pv,pvh", "--type pv,pvh: more than one type", "use one of pv, "),
        ("boot --lab-memory 12", "--lab-memory 12: invalid value", "use a number from 1280"),
        ("history --reports {empty}/none", "--reports {empty}/none: no such directory", "`fxh run --reports`"),
        ("report --reports {empty}", "no run 'latest' in {empty}", "`fxh history`"),
        ("compare 2020 2021 --reports {empty}", "no run '2020'", "`fxh history`"),
        ("blame x --reports {empty}", "no run 'latest'", "`fxh history`"),
        ("merge {empty}", "{empty}/run.json: No such file", "reports/runs/NAME"),
        ("repro run {empty}/none", "{empty}/none: no such file", "`fxh repro export`"),
        ("image show nosuch", "no image 'nosuch'", "fxh image build"),
        ("image build --src /usr --layout nosuch", "no layout 'nosuch'", "valid names: ufs1, "),
        ("image build --src {empty}", "{empty} is not a FreeBSD source tree", "/usr/src"),
        ("image build x --disk {empty}", "{empty}: Is a directory", "a disk image"),
        ("image build --disk {file}", "freebsd is a recipe with a layout", "fxh image build NAME --disk FILE"),
        ("image build --disk {file} --layout ufs2", "--layout, --size and --bsize are for images that are built", "omit them"),
        ("store gc", "gc needs a limit", "--size MIB"),
        ("lab down nosuch", "no lab nosuch", "`fxh lab list`"),
    ],
)
def test_the_error_names_value_and_fix(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: str, message: str, hint: str
) -> None:
    empty, file = tmp_path / "empty", tmp_path / "file"
    empty.mkdir()
    file.write_text("")
    monkeypatch.setenv("FXH_STORE", str(tmp_path / "store"))
    monkeypatch.setenv("FXH_CONFIG", str(file))
    argv = words.format(empty=empty, file=file).split()
    monkeypatch.setattr("sys.argv", ["fxh", *argv])
    with pytest.raises(UsageError) as caught:
        COMMAND.main(argv, standalone_mode=False)
    assert message.format(empty=empty, file=file) in caught.value.message
    assert hint in caught.value.hint
    assert not (empty / "none").exists()


@pytest.mark.parametrize(("variable", "find"), [("FXH_STORE", paths.store), ("FXH_RUNTIME", paths.runtime)])
@pytest.mark.parametrize("place", ["file", "file/below"])
def test_a_directory_that_cannot_be_created(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, variable: str, find: Callable[[], Path], place: str
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv(variable, str(tmp_path / place))
    with pytest.raises(UsageError, match=rf"{place}: cannot create this directory: .*\n  hint: set {variable} to a directory"):
        find()


def test_a_makefs_that_is_no_program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FXH_MAKEFS", str(tmp_path))
    with pytest.raises(UsageError, match=r"FXH_MAKEFS=.*: not a program\n  hint: set it to the path"):
        makefs.find(None)


def test_a_night_does_not_start_if_its_mail_cannot_be_sent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "fxh.toml").write_text('[mail]\nsend = true\nuser = "fxh"\npassword_file = "none"\n')
    monkeypatch.setenv("FXH_CONFIG", str(tmp_path / "fxh.toml"))
    monkeypatch.delenv("FXH_MAIL_PASSWORD", raising=False)
    with pytest.raises(UsageError, match=r"mail\.password_file: No such file"):
        COMMAND.main(["nightly", "--reports", str(tmp_path / "reports")], standalone_mode=False)
    assert not (tmp_path / "reports").exists()


def test_setup_without_apt_names_the_programs(monkeypatch: pytest.MonkeyPatch) -> None:
    have = {"ssh", "make"}
    monkeypatch.setattr("shutil.which", lambda name, path=None: name if name in have else None)
    with pytest.raises(InfrastructureError) as caught:
        COMMAND.main(["setup"], standalone_mode=False)
    first, run, build = caught.value.message.splitlines()
    assert "this system has no apt-get" in first
    assert run.startswith("  to run a lab: qemu-system-x86_64 (qemu-system-x86), makefs (makefs), qemu-img (qemu-utils)")
    assert build.startswith("  to build a lab: mmdebstrap (mmdebstrap), mke2fs (e2fsprogs)")
    assert "ssh (" not in run
    assert "make (" not in build
    assert "fxh lab import" in caught.value.hint
    assert "docs/hosts.md" in caught.value.hint


def test_an_unknown_accelerator() -> None:
    with pytest.raises(UsageError, match=r"--accel foo: invalid value\n  hint: valid values: auto, tcg, kvm"):
        make(LabSpec(accel="foo"))


def test_an_unknown_host_has_the_hint_to_configure_it() -> None:
    with pytest.raises(TransportError, match=r"nosuch\.invalid: .*\n  hint: correct the name, or add \[hosts\.nosuch\.invalid\]"):
        direct("root@nosuch.invalid")


@pytest.mark.parametrize("option", ["--src", "--dist", "--disk", "--kernel K --destdir"])
def test_a_name_that_is_too_long(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], option: str
) -> None:
    monkeypatch.setenv("FXH_STORE", str(tmp_path / "store"))
    monkeypatch.setattr("sys.argv", ["fxh", "image", "build", "x", *option.split(), "n" * 300])
    with pytest.raises(SystemExit) as caught:
        main()
    assert caught.value.code == ExitCode.USAGE
    assert "File name too long\n     hint: " in capsys.readouterr().err
