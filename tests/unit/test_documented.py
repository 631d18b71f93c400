# SPDX-License-Identifier: BSD-2-Clause
"""Help, manual page and docs name every option, default, key and variable that the code has."""

from __future__ import annotations

import ast
import re
import tomllib
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
import typer.main

from harness.cli import manual
from harness.cli.main import COMMANDS, make_app
from harness.config import runoptions
from harness.config.schema import SECTIONS, HostConfig
from harness.guests.source import GuestSource
from harness.images import layout, recipe
from harness.lab import factory
from harness.lab import recipe as lab_recipe
from tests.conftest import ROOT

ROOT_COMMAND: Any = typer.main.get_command(make_app())
DOCS = {path.name: path.read_text() for path in [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]}
# FXH_RUN_SCALE: a key of a table of fxh.toml.
SETTING = re.compile(rf"FXH_({'|'.join(SECTIONS).upper()})_")


def commands(command: Any = ROOT_COMMAND, name: str = "fxh") -> Iterator[tuple[str, Any]]:
    yield name, command
    for word, below in getattr(command, "commands", {}).items():
        yield from commands(below, f"{name} {word}")


def options() -> Iterator[tuple[str, Any, str]]:
    """(`fxh run --scale`, the parameter, its line in the help) of every option and argument."""
    for name, command in commands():
        context = ROOT_COMMAND.context_class(command, info_name=name)
        for parameter in command.params:
            record = parameter.get_help_record(context)
            if record and not parameter.hidden:
                yield f"{name} {record[0]}", parameter, record[1]


def test_each_option_with_a_value_says_its_default_once() -> None:
    for name, parameter, text in options():
        shown = len(re.findall(r"\bdefault:", text))
        needed = not parameter.required and parameter.default not in (None, "", False) and not getattr(parameter, "count", False)
        assert shown == 1 if needed else shown <= 1, f"{name}: {text}"
        assert "[default: 0]" not in text, f"{name}: 0 means a default that the help does not say"


def test_defaults_in_run_options_are_those_of_the_code() -> None:
    for option in runoptions.OPTIONS.values():
        if option.flags and option.kind in (int, float, str, tuple) and option.default:
            value = (
                ",".join(option.default)
                if option.kind is tuple
                else f"{option.default:g}"
                if option.kind is float
                else option.default
            )
            assert f"(default: {value})" in option.help, option.help


@pytest.mark.parametrize(
    ("option", "default"),
    [
        ("fxh run --xen", lab_recipe.DEFAULT_XEN),
        ("fxh boot --xen", lab_recipe.DEFAULT_XEN),
        ("fxh lab up --xen", lab_recipe.DEFAULT_XEN),
        ("fxh lab up --memory", factory.MEMORY),
        ("fxh boot --lab-memory", factory.MEMORY),
        ("fxh boot --memory", GuestSource.memory),
        ("fxh image build --kernconf", recipe.resolve("", {"src": "/"}, {}).kernconf),
        ("fxh image build --world", recipe.resolve("", {"src": "/"}, {}).world),
        ("fxh image build --layout", recipe.resolve("", {"src": "/"}, {}).layout),
        ("fxh image build --size", layout.load("ufs1").vdevs[0].fs[0].size),
        ("fxh image build --bsize", layout.load("ufs1").vdevs[0].fs[0].bsize),
    ],
)  # fmt: skip
def test_defaults_in_the_help_are_those_of_the_code(option: str, default: object) -> None:
    (text,) = (text for name, _, text in options() if name.partition(" <")[0] == option)
    assert re.search(rf"default: {re.escape(str(default))}\b", text), text


def test_docs_list_every_key_of_fxh_toml() -> None:
    example = tomllib.loads(DOCS["hosts.md"].split("```toml\n")[1].split("```")[0])
    hosts = example.pop("hosts")
    known = {name: {item.name for item in fields(table)} for name, table in SECTIONS.items() if name != "run"}
    known["run"] = {key for key, option in runoptions.OPTIONS.items() if option.toml}
    assert {name: set(table) for name, table in example.items()} == known
    assert {key for host in hosts.values() for key in host} == {item.name for item in fields(HostConfig)} - {"name"}


def read_variables() -> dict[str, Path]:
    """The variables FXH_... whose names are strings in the code."""
    found = {}
    for path in (file for top in ("harness", "suites") for file in (ROOT / top).rglob("*.py") if file.name != "manual.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Constant) and isinstance(node.value, str) and re.fullmatch(r"FXH_[A-Z]+(_[A-Z]+)*", node.value):
                found[node.value] = path
    return found


def test_manual_and_docs_have_every_environment_variable() -> None:
    used = read_variables()
    assert {"FXH_STORE", "FXH_CRIU", "FXH_OUT", "FXH_FUZZ_SEED"} <= used.keys(), "the search works"
    assert manual._ENVIRONMENT.keys() - {"FXH_SECTION_KEY"} == used.keys()
    documented = set(re.findall(r"FXH_[A-Z_]+[A-Z]", "".join(DOCS.values())))
    assert {name for name in documented if name in used or not SETTING.match(name)} == used.keys()


@pytest.mark.parametrize("module", COMMANDS)
def test_a_command_is_found_in_its_module(module: str) -> None:
    found: Any = typer.main.get_command(make_app([module]))
    assert tuple(found.commands) == COMMANDS[module]


def test_each_module_with_commands_is_listed() -> None:
    directory = ROOT / "harness" / "cli"
    assert {path.stem for path in directory.glob("*.py") if "def register(" in path.read_text()} == COMMANDS.keys()
