# SPDX-License-Identifier: BSD-2-Clause
"""fxh.toml: layers, sources, and the errors for mistakes."""

from __future__ import annotations

import time
from dataclasses import fields
from pathlib import Path

import pytest

from harness.config import load
from harness.config.runoptions import OPTIONS
from harness.config.schema import SECTIONS, HostConfig
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


NUMBER = ["nan", "inf", "-inf", "-1", "1e300", "10000000000000000000000"]
# The key, invalid values and valid ones, as in TOML.
VALUES = [
    ("run.workers", [*NUMBER, "1.5"], ["0", "8"]),
    ("run.scale", [*NUMBER, "0", "0.0"], ["1", "0.5", "1000"]),
    ("run.guest", [], ['"freebsd,control"']),
    ("run.type", ['"pvx"', '"pv,pvx"'], ['"pv, hvm"', '""']),
    ("run.firmware", ['"efi"'], ['"bios,uefi"']),
    ("run.xen", [], ['"4.17,4.20"']),
    ("run.xen_host", [], ['"tag:nightly"']),
    ("run.accel", ['"hvf"'], ['"kvm"']),
    ("run.keep", ['"always"'], ['"dump"']),
    ("run.fail_on", ['"warning"'], ['"complaint"']),
    ("run.keep_minutes", [*NUMBER, "0"], ["1", "600"]),
    ("run.keep_runs", [*NUMBER, "0"], ["1"]),
    ("run.history", ['"sqlite:///x"', '"postgresql+psycopg://h"'], ['"postgresql+psycopg://h/d"', '""']),
    ("run.lab_memory", [*NUMBER, "1279"], ["0", "1280"]),
    ("run.lab_cpus", [*NUMBER, "0", "17"], ["1", "16"]),
    ("run.lease_memory", NUMBER, ["0", "512"]),
    ("run.lease_wait", NUMBER, ["0", "60"]),
    ("hosts.a.address", ['""', '"a b"', '"h:0"', '"-oX"', '"labgrid:"', '"labgrid:Tag=x"'], ['"local"', '"root@[::1]:22"', '"labgrid:tag=xen"']),
    ("hosts.a.key", [], ['"~/.ssh/id"']),
    ("hosts.a.jump", ['"a b"', '"gate,h:x"'], ['"me@gate, h:22"', '"none"']),
    ("hosts.a.known_hosts", [], ['"~/.ssh/known_hosts"']),
    ("hosts.a.bridge", ['""', '"-x"', '"a b"', '"a,mac=x"'], ['"bridge0"']),
    ("hosts.a.storage", ['""', '"/srv"', '"lvm"', '"lvm:"', '"zvol:-x"', '"file:/srv"'], ['"file"', '"lvm:vg0"', '"zvol:tank/guests"']),
    ("hosts.a.memory", NUMBER, ["0", "8192"]),
    ("hosts.a.vcpus", NUMBER, ["0", "16"]),
    ("hosts.a.mac_prefix", ['"5"', '"5g"', '"00:16"', '"٥٥"'], ['"5a"', '"5A"', '""']),
    ("hosts.a.tags", ['[""]', '["a b"]', '["a,b"]', '["a", 1]'], ['["nightly"]', "[]"]),
    ("hosts.a.power", ['"pdu on"', "1", '{on = "x"}', '{reset = "x"}'], ['"pdu {action}"', '{cycle = "x"}']),
    ("hosts.a.serial", ["1", '""', '"tcp:h"', '"tcp:h:x"', '"tcp:h:0"', '"unix:"'], ['"/dev/ttyS0"', '"tcp:[::1]:7000"', '"unix:/x"', '"sol activate"']),
    ("hosts.a.prepare", ["1", '""', "[]", '"\'"'], ['"install xen"']),
    ("mail.send", ["1", '"yes"'], ["true"]),
    ("mail.sender", ['"root"', '"a@"', '"a b@c"'], ['"fxh@x"', '"Tests <fxh@x>"', '""']),
    ("mail.to", ['["root"]', '["a@b", ""]', '"a@b"'], ['["a@b", "c@d"]', "[]"]),
    ("mail.infrastructure_to", ['["a b"]'], ['["root", "a@b"]']),
    ("mail.smtp", ['""', '"h:"', '"h:0"', '"smtp://h"', '"::1"'], ['"h"', '"h:587"', '"[::1]:25"']),
    ("mail.security", ['""', '"ssl"', '"TLS"'], ['"tls"']),
    ("mail.ca_file", [], ['"/etc/ca.pem"']),
    ("mail.user", [], ['"fxh"']),
    ("mail.password_file", [], ['"~/smtp"']),
    ("nightly.source", [], ['"/srv/src"']),
    ("nightly.update", ['"git pull"'], ['["git", "pull"]', "[]"]),
    ("nightly.build", ['"x"'], ['["--src", "x"]']),
    ("nightly.run", ["[1]"], ['["-n", "2"]']),
    ("nightly.walk", ['"0m"', '"-5m"', '"1.5h"', '"often"'], ['"10m"', '""']),
    ("nightly.report", ['"--mail"'], ['["--mail"]']),
    ("nightly.step_hours", [*NUMBER, "0"], ["0.5", "12"]),
    ("labgrid.coordinator", ['"a b"', '"h:x"', '"http://h"'], ['"h:20408"', '""']),
]  # fmt: skip


def toml_of(key: str, value: str) -> str:
    table, _, name = key.rpartition(".")
    return f"[{table}]\n{name} = {value}\n"


@pytest.mark.parametrize(("key", "invalid", "valid"), VALUES, ids=[row[0] for row in VALUES])
def test_values_are_checked_when_they_are_loaded(toml: Path, key: str, invalid: list[str], valid: list[str]) -> None:
    for value in valid:
        toml.write_text(toml_of(key, value))
        load(environment={})
    for value in [*invalid, *(['"a\\u0000"', '["a\\u0000"]'] if '"' in "".join(valid) else []), "1979-05-27"]:
        toml.write_text(toml_of(key, value))
        with pytest.raises(UsageError) as caught:
            load(environment={})
        assert caught.value.message.startswith(f"{toml}: {key}"), value
        assert caught.value.hint, value


def test_every_key_is_in_the_table_and_has_a_check() -> None:
    keys = {f"run.{key}" for key, option in OPTIONS.items() if option.toml}
    for table, kind in {**SECTIONS, "hosts.a": HostConfig}.items():
        for item in fields(kind) if table != "run" else ():
            if item.name != "name":
                keys.add(f"{table}.{item.name}")
                assert item.metadata or item.type == "bool", item
    assert {row[0] for row in VALUES} == keys
    assert all(option.check for option in OPTIONS.values() if option.kind in (int, float))


def test_a_command_may_be_a_script_and_a_name_may_not(toml: Path) -> None:
    toml.write_text('[hosts.a]\nprepare = ["sh", "-c", """\na\nb"""]\n[nightly]\nupdate = ["sh", "-c", "a\\nb"]\n')
    load(environment={})
    for key in ("run.xen_host", "hosts.a.key", "hosts.a.address", "mail.user", "mail.sender", "nightly.source", "run.history"):
        toml.write_text(toml_of(key, '"a@b\\u001b"'))
        with pytest.raises(UsageError, match=key):
            load(environment={})


def test_one_message_has_all_mistakes(toml: Path) -> None:
    toml.write_text('[run]\nscale = 0\nscael = 1\n[hosts.a]\nmemory = -1\n[mail]\nsecurity = "ssl"\n[rnu]\n')
    with pytest.raises(UsageError) as caught:
        load({"run.type": "pvx"}, {"FXH_RUN_WORKERS": "x"})
    starts = [line.removeprefix(f"{toml}: ") for line in str(caught.value).splitlines() if not line.startswith("  hint: ")]
    assert starts == [
        "run.scale = 0.0: invalid value",
        "unknown run.scael",
        "hosts.a.memory = -1: invalid value",
        "mail.security = 'ssl': invalid value",
        "unknown [rnu]",
        "environment FXH_RUN_WORKERS: run.workers = 'x': wrong type",
        "--type pvx: invalid value",
    ]
    assert str(caught.value).count("\n  hint: ") == len(starts)


def test_an_invalid_history_is_not_shown(toml: Path) -> None:
    toml.write_text('[run]\nhistory = "mysql://fxh:hush@h/d"')
    with pytest.raises(UsageError, match=r"run\.history = .*: invalid value") as caught:
        load(environment={})
    assert "hush" not in str(caught.value)


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
    for variable, text, message, hint in (
        ("FXH_RUN_WORKERS", "many", "run.workers = 'many': wrong type", "set a whole number"),
        ("FXH_RUN_SCALE", "nan", "run.scale = nan: invalid value", "use a number above 0, 1000 at most"),
        ("FXH_RUN_SCALE", "1e999", "run.scale = inf: invalid value", "use a number above 0, 1000 at most"),
        ("FXH_MAIL_SEND", "maybe", "mail.send = 'maybe': wrong type", "set true or false"),
        ("FXH_MAIL_SECURITY", "ssl", "mail.security = 'ssl': invalid value", "valid values: auto, tls, starttls, none"),
        ("FXH_MAIL_TO", "a@b,c", "mail.to = 'c': invalid value", "use user@host"),
        ("FXH_NIGHTLY_STEP_HOURS", "-1", "nightly.step_hours = -1.0: invalid value", "use a number above 0, 8784 at most"),
    ):
        with pytest.raises(UsageError) as caught:
            load(environment={variable: text})
        assert (caught.value.message, caught.value.hint) == (f"environment {variable}: {message}", hint)
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
