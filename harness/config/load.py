# SPDX-License-Identifier: BSD-2-Clause
"""The layers of the configuration. Each covers the ones before it: default, user, project, environment, command line."""

from __future__ import annotations

import functools
import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import MISSING, dataclass, field, fields, replace
from pathlib import Path
from typing import Any, get_type_hints

import platformdirs

from harness import paths
from harness.config import commands, databaseurl, runoptions
from harness.config.schema import SECTIONS, Config, HostConfig
from harness.errors import UsageError

NAME = "fxh.toml"
COMMAND_LINE = "command line"
_HINTS = {
    str: 'set a string, such as "one" or "one,two"',
    int: "set a whole number",
    float: "set a number",
    bool: "set true or false",
}
# xen1, rack-7.example: cells, file names and messages contain it.
_HOST = re.compile(r"[A-Za-z0-9][A-Za-z0-9.-]{0,40}")


@dataclass(frozen=True)
class Value:
    """A setting and its source: ``default``, a file, ``environment VARIABLE`` or ``command line``."""

    key: str
    value: Any
    source: str


@dataclass
class Loaded:
    """The configuration with the source of every value."""

    config: Config
    values: tuple[Value, ...]
    """For users: without secrets."""
    files: tuple[Path, ...] = ()
    """The files of the layers; some may not exist."""


@dataclass
class _Layer:
    source: str
    data: Mapping[str, Any]


@dataclass
class _Merged:
    values: dict[str, Value] = field(default_factory=dict)

    def put(self, key: str, value: Any, source: str) -> None:
        self.values[key] = Value(key, value, source)


def files() -> tuple[Path, ...]:
    """The configuration files, the later over the earlier: only ``FXH_CONFIG`` if it is set, else the user's and the project's."""
    given = os.environ.get("FXH_CONFIG")
    if given:
        return (Path(given),)
    return (Path(platformdirs.user_config_dir("freebsd-xen-harness")) / NAME, paths.workspace() / NAME)


def load(overrides: Mapping[str, Any] | None = None, environment: Mapping[str, str] | None = None) -> Loaded:
    """Read all layers.

    ``overrides`` come from the command line, by dotted key (``run.kernel``); None and "" mean not given. The section ``run`` takes
    all options there, in the other layers only those that ``fxh.toml`` has.

    Raises UsageError for an unreadable file, an unknown key (the hint suggests the closest one), a wrong type and an invalid value.
    """
    import tomllib

    found = files()
    layers = []
    for path in found:
        try:
            layers.append(_Layer(str(path), tomllib.loads(path.read_text())))
        except FileNotFoundError:
            if os.environ.get("FXH_CONFIG"):
                raise UsageError(f"{path}: no such file", hint="correct or unset FXH_CONFIG") from None
        except UnicodeDecodeError as exc:
            raise UsageError(
                f"{path}: not a text file in UTF-8 (byte {exc.start})", hint="see docs/hosts.md for an example"
            ) from exc
        except tomllib.TOMLDecodeError as exc:
            raise UsageError(f"{path}: {exc}", hint="see docs/hosts.md for an example") from exc
        except OSError as exc:
            raise UsageError(f"{path}: {exc.strerror}", hint="make it a file that you can read") from exc
    merged = _Merged()
    for option in runoptions.OPTIONS.values():
        if option.toml:
            merged.put(f"run.{option.key}", option.write(option.default), "default")
    for section, kind in SECTIONS.items():
        for item in fields(kind) if section != "run" else ():
            merged.put(f"{section}.{item.name}", item.default, "default")
    for layer in layers:
        _merge_file(merged, layer)
    _merge_environment(merged, os.environ if environment is None else environment)
    for key, value in (overrides or {}).items():
        if value not in (None, ""):
            section, _, name = key.partition(".")
            merged.put(key, _checked(SECTIONS[section], name, key, value, COMMAND_LINE), COMMAND_LINE)
    return Loaded(
        _build(merged), tuple(replace(value, value=_shown(value.key, value.value)) for value in merged.values.values()), found
    )


def _shown(key: str, value: Any) -> Any:
    """The value as messages may have it."""
    section, _, name = key.partition(".")
    option = runoptions.OPTIONS.get(name) if section == "run" else None
    return option.shown(value) if option else value


def _merge_file(merged: _Merged, layer: _Layer) -> None:
    for section, content in layer.data.items():
        if section == "hosts":
            _require_table(content, "hosts", layer.source)
            for name, host in content.items():
                _merge_host(merged, name, host, layer.source)
            continue
        if section not in SECTIONS:
            raise _unknown(f"[{section}]", section, [*SECTIONS, "hosts"], layer.source)
        _require_table(content, section, layer.source)
        for name, value in content.items():
            key = f"{section}.{name}"
            merged.put(key, _checked(SECTIONS[section], name, key, value, layer.source), layer.source)


def _merge_host(merged: _Merged, name: str, content: Any, source: str) -> None:
    if not _HOST.fullmatch(name):
        raise UsageError(f"{source}: invalid host name {name!r}", hint="use at most 41 letters, digits, '.' and '-'")
    _require_table(content, f"hosts.{name}", source)
    for key, value in content.items():
        if key == "name":
            raise UsageError(f"{source}: unknown key hosts.{name}.name", hint="delete the key: the table's name is the host's name")
        dotted = f"hosts.{name}.{key}"
        merged.put(dotted, _checked(HostConfig, key, dotted, value, source), source)


def _merge_environment(merged: _Merged, environment: Mapping[str, str]) -> None:
    """``FXH_RUN_SCALE=2`` sets ``run.scale``. Hosts have no variables."""
    for variable, text in sorted(environment.items()):
        # FXH_RUN_LAB_MEMORY
        match = re.fullmatch(r"FXH_([A-Z]+)_([A-Z_]+)", variable)
        if not match or match[1].lower() not in SECTIONS:
            continue
        section, name = match[1].lower(), match[2].lower()
        if (section, name) == ("mail", "password"):  # a secret: harness.mailer reads it, and no command prints it
            continue
        kind = SECTIONS[section]
        wanted = _types(kind).get(name)
        value: Any = text
        try:
            if wanted is bool:
                value = {"1": True, "true": True, "yes": True, "0": False, "false": False, "no": False}[text.lower()]
            elif wanted in (int, float):
                value = wanted(text)
            elif wanted is not str and wanted is not None:
                value = text.replace(",", " ").split()
        except (ValueError, KeyError):
            hint = next(hint for known, hint in _HINTS.items() if known is wanted)
            raise UsageError(f"{variable}={text!r}: invalid value", hint=hint) from None
        source = f"environment {variable}"
        merged.put(f"{section}.{name}", _checked(kind, name, f"{section}.{name}", value, source), source)


@functools.cache
def _types(kind: type) -> Mapping[str, Any]:
    """The keys of a table of ``fxh.toml`` and their types."""
    if kind is runoptions.RunOptions:
        return {key: option.written for key, option in runoptions.OPTIONS.items() if option.toml}
    return get_type_hints(kind)


def _checked(kind: type, name: str, key: str, value: Any, source: str) -> Any:
    if kind is runoptions.RunOptions and source == COMMAND_LINE:
        return _checked_words(runoptions.OPTIONS[name], key, value, source)
    types = _types(kind)
    if name not in types:
        raise _unknown(key, name, [item for item in types if item != "name"], source)
    if kind is HostConfig and name in commands.READERS:
        return commands.READERS[name](value, f"{source}: {key}")
    wanted = types[name]
    if wanted is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if wanted in (str, int, float, bool):
        if type(value) is not wanted:
            raise UsageError(f"{source}: {key} = {_shown(key, value)!r}: wrong type", hint=_HINTS[wanted])
        return _checked_words(runoptions.OPTIONS[name], key, value, source) if kind is runoptions.RunOptions else value
    if not isinstance(value, list | tuple) or not all(isinstance(word, str) for word in value):
        raise UsageError(f"{source}: {key} = {value!r}: wrong type", hint='set a list of strings: ["one", "two"]')
    return tuple(value)


def _checked_words(option: runoptions.RunOption, key: str, value: Any, source: str) -> Any:
    word = option.invalid(option.read(value))
    where = f"--{option.name} {word or value}" if source == COMMAND_LINE else f"{source}: {key} = {option.shown(value)!r}"
    if option.database and value and not databaseurl.is_valid(value):
        raise UsageError(f"{where}: invalid value", hint=databaseurl.HINT)
    if word:
        raise UsageError(f"{where}: invalid value", hint=f"valid values: {', '.join(option.values)}")
    if option.least is not None and value < option.least:
        raise UsageError(f"{where}: too small", hint=f"use {option.least:g} or more")
    return value


def _require_table(content: Any, name: str, source: str) -> None:
    if not isinstance(content, dict):
        raise UsageError(f"{source}: {name} = {content!r}", hint=f"write it as a table: [{name}]")


def _unknown(what: str, name: str, known: Iterable[str], source: str) -> UsageError:
    import difflib

    known = list(known)
    close = difflib.get_close_matches(name, known, 1, 0.5)
    hint = f"did you mean {close[0]!r}?" if close else f"valid names: {', '.join(known)}"
    return UsageError(f"{source}: unknown {what}", hint=hint)


def _build(merged: _Merged) -> Config:
    sections: dict[str, dict[str, Any]] = {}
    hosts: dict[str, dict[str, Any]] = {}
    for key, value in merged.values.items():
        section, _, rest = key.partition(".")
        if section == "hosts":
            name, _, item = rest.rpartition(".")
            hosts.setdefault(name, {})[item] = value.value
        else:
            sections.setdefault(section, {})[rest] = value.value
    built = {}
    for name, content in hosts.items():
        if not content.get("address"):
            content["address"] = name
        if content.get("prepare") and content["address"].startswith("labgrid:"):
            what = f"hosts.{name}.prepare: {content['address']} is any of the places of a labgrid, so it cannot be prepared"
            raise UsageError(what, hint=f"delete hosts.{name}.prepare, or add the machine to fxh.toml with its own address")
        built[name] = HostConfig(name=name, **content)
    _add_host_defaults(merged, built)
    run = runoptions.of_words(sections.pop("run"))
    return Config(run=run, hosts=built, **{section: SECTIONS[section](**content) for section, content in sections.items()})


def _add_host_defaults(merged: _Merged, hosts: Mapping[str, HostConfig]) -> None:
    """Add the defaults of the configured hosts, so that `fxh config show` lists them."""
    for name, host in hosts.items():
        for item in fields(HostConfig):
            key = f"hosts.{name}.{item.name}"
            if key not in merged.values and item.name != "name":
                value = getattr(host, item.name)
                merged.put(key, value, "the table's name" if item.default is MISSING else "default")
