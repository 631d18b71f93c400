# SPDX-License-Identifier: BSD-2-Clause
"""fxh.toml: layers, sources, and the errors for mistakes."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from harness.config import load
from harness.errors import UsageError


@pytest.fixture
def toml(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    file = tmp_path / "fxh.toml"
    monkeypatch.setenv("FXH_CONFIG", str(file))
    return file


def test_each_layer_covers_the_one_below(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("FXH_CONFIG", raising=False)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "user"))
    monkeypatch.setenv("FXH_PROJECT", str(tmp_path / "project"))
    for name, text in (
        ("user/freebsd-xen-harness", '[run]\nscale = 2\nworkers = 3\ntype = "pv"\nxen = "4.17"'),
        ("project", '[run]\nworkers = 4\ntype = "pvh"\nxen = "4.20"\n[hosts.a]\naddress = "root@a:2222"\ntags = ["nightly"]'),
    ):
        (tmp_path / name).mkdir(parents=True)
        (tmp_path / name / "fxh.toml").write_text(text)
    loaded = load({"run.xen": "4.18", "run.guest": ""}, {"FXH_RUN_TYPE": "hvm", "FXH_RUN_XEN": "4.19", "FXH_MAIL_TO": "a@b, c@d"})
    run = loaded.config.run
    assert (run.scale, run.workers, run.types, run.xens, run.guests, run.accel) == (2.0, 4, ("hvm",), ("4.18",), (), "auto")
    assert loaded.config.mail.to == ("a@b", "c@d")
    assert loaded.config.hosts["a"].tags == ("nightly",)
    source = {value.key: value.source for value in loaded.values}
    assert source["run.scale"].endswith("user/freebsd-xen-harness/fxh.toml")
    assert source["run.workers"].endswith("project/fxh.toml")
    assert source["run.type"] == "environment FXH_RUN_TYPE"
    assert source["run.xen"] == "command line"
    assert source["run.accel"] == source["hosts.a.bridge"] == "default"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[run]\nscael = 2", "unknown run.scael\n  hint: did you mean 'scale'?"),
        ("[rnu]\nscale = 2", r"unknown \[rnu\]\n  hint: did you mean 'run'?"),
        ('[hosts.a]\nadress = "x"', "unknown hosts.a.adress\n  hint: did you mean 'address'?"),  # codespell:ignore adress
        ('[run]\nscale = "2"', "run.scale = '2': wrong type\n  hint: set a number"),
        ("[run]\nworkers = true", "run.workers = True"),
        ("[run]\nworkers = -1", "run.workers = -1: too small\n  hint: use 0 or more"),
        ('[hosts.a]\ntags = "x"', "set a list of strings"),
        ("hosts = 1", "write it as a table"),
        ("run = 1", "write it as a table"),
        ('[hosts."a b"]\naddress = "x"', "invalid host name 'a b'"),
        ("[run", "fxh.toml: "),
    ],
)
def test_mistakes_have_a_hint(toml: Path, text: str, words: str) -> None:
    toml.write_text(text)
    with pytest.raises(UsageError, match=words):
        load()


def test_an_unreadable_file(toml: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    toml.write_bytes(b"\xff\xfe")
    with pytest.raises(UsageError, match=r"not a text file in UTF-8 \(byte 0\)\n  hint: "):
        load()
    monkeypatch.setenv("FXH_CONFIG", str(toml.parent))
    with pytest.raises(UsageError, match=r": Is a directory\n  hint: make it a file"):
        load()


def test_mistakes_in_the_environment(toml: Path) -> None:
    toml.write_text("")
    with pytest.raises(UsageError, match=r"environment FXH_RUN_WORKRES: unknown run\.workres"):
        load(environment={"FXH_RUN_WORKRES": "2"})
    with pytest.raises(UsageError, match="FXH_RUN_WORKERS='many': invalid value"):
        load(environment={"FXH_RUN_WORKERS": "many"})
    loaded = load(environment={"FXH_STORE": "/x", "FXH_MAIL_PASSWORD": "hush", "FXH_MAIL_SEND": "yes"})
    assert loaded.config.mail.send is True
    assert "hush" not in repr(loaded)


def test_a_missing_fxh_config(toml: Path) -> None:
    with pytest.raises(UsageError, match="no such file"):
        load()


def test_a_hundred_hosts_cost_nothing(toml: Path) -> None:
    toml.write_text("".join(f'[hosts.h{n}]\naddress = "root@10.0.0.{n}"\ntags = ["nightly"]\n' for n in range(100)))
    begun = time.process_time()
    assert len(load().config.hosts) == 100
    assert time.process_time() - begun < 0.25


def test_the_example_of_the_documentation_is_valid(toml: Path) -> None:
    page = (Path(__file__).parent.parent.parent / "docs" / "hosts.md").read_text()
    toml.write_text(page.split("```toml\n")[1].split("```")[0])
    config = load().config
    assert set(config.hosts) == {"xen1", "xen2", "rack"}
    assert config.mail.send is False
