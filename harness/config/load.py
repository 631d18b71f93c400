# SPDX-License-Identifier: BSD-2-Clause
"""The layers of a configuration, one over the other: default, user, project, environment, command line."""

from __future__ import annotations

import difflib
import os
import re
import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import MISSING, dataclass, field, fields
from pathlib import Path
from typing import Any, get_type_hints

import platformdirs

from harness import paths
from harness.config.schema import SECTIONS, Config, HostConfig
from harness.errors import UsageError

NAME = "fxh.toml"
# A host's name goes into cells, file names and messages.
_HOST = re.compile(r"[A-Za-z0-9][A-Za-z0-9.-]{0,40}")


@dataclass(frozen=True)
class Value:
    """A setting and where it comes from: ``default``, a file, a variable of the environment, or ``command line``."""

    key: str
    value: Any
    source: str


@dataclass
class Loaded:
    """The configuration with the source of every value."""

    config: Config
    values: tuple[Value, ...]
    files: tuple[Path, ...] = ()
    """Those looked at, whether there or not."""


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
    """Where configuration is looked for, the later over the earlier: ``FXH_CONFIG`` alone, else the user's and the project's."""
    given = os.environ.get("FXH_CONFIG")
    if given:
        return (Path(given),)
    return (Path(platformdirs.user_config_dir("freebsd-xen-harness")) / NAME, paths.workspace() / NAME)


def load(overrides: Mapping[str, Any] | None = None, environment: Mapping[str, str] | None = None) -> Loaded:
    """Read all layers. ``overrides`` are the command line's, by dotted key; None and "" there mean not given.

    Raises UsageError for a file that cannot be read, an unknown key (with what was probably meant) and a wrong type.
    """
    looked = files()
    layers = []
    for path in looked:
        try:
            layers.append(_Layer(str(path), tomllib.loads(path.read_text())))
        except FileNotFoundError:
            if os.environ.get("FXH_CONFIG"):
                raise UsageError(f"{path}: no such file", hint="FXH_CONFIG names it") from None
        except (OSError, ValueError) as exc:
            raise UsageError(f"{path}: {exc}", hint="see docs/hosts.md for an example") from exc
    merged = _Merged()
    for section, kind in SECTIONS.items():
        for item in fields(kind):
            merged.put(f"{section}.{item.name}", item.default, "default")
    for layer in layers:
        _apply(merged, layer)
    _environment(merged, os.environ if environment is None else environment)
    for key, value in (overrides or {}).items():
        if value not in (None, ""):
            section, _, name = key.partition(".")
            merged.put(key, _checked(SECTIONS[section], name, key, value, "command line"), "command line")
    return Loaded(_build(merged), tuple(merged.values.values()), looked)


def _apply(merged: _Merged, layer: _Layer) -> None:
    for section, content in layer.data.items():
        if section == "hosts":
            _table(content, "hosts", layer.source)
            for name, host in content.items():
                _host(merged, name, host, layer.source)
            continue
        if section not in SECTIONS:
            raise _unknown(f"[{section}]", section, [*SECTIONS, "hosts"], layer.source)
        _table(content, section, layer.source)
        for name, value in content.items():
            key = f"{section}.{name}"
            merged.put(key, _checked(SECTIONS[section], name, key, value, layer.source), layer.source)


def _host(merged: _Merged, name: str, content: Any, source: str) -> None:
    if not _HOST.fullmatch(name):
        raise UsageError(f"{source}: a host named {name!r}", hint="use letters, digits, '.' and '-', 41 at most")
    _table(content, f"hosts.{name}", source)
    for key, value in content.items():
        if key == "name":
            raise UsageError(f"{source}: hosts.{name}.name", hint="a host's name is that of its table")
        dotted = f"hosts.{name}.{key}"
        merged.put(dotted, _checked(HostConfig, key, dotted, value, source), source)


def _environment(merged: _Merged, environment: Mapping[str, str]) -> None:
    """``FXH_RUN_SCALE=2`` is ``run.scale``. Hosts are set in files alone."""
    for variable, text in sorted(environment.items()):
        match = re.fullmatch(r"FXH_([A-Z]+)_([A-Z_]+)", variable)
        if not match or match[1].lower() not in SECTIONS:
            continue
        section, name = match[1].lower(), match[2].lower()
        if (section, name) == ("mail", "password"):  # a secret: read by who sends, never shown
            continue
        kind = SECTIONS[section]
        wanted = get_type_hints(kind).get(name)
        value: Any = text
        try:
            if wanted is bool:
                value = {"1": True, "true": True, "yes": True, "0": False, "false": False, "no": False}[text.lower()]
            elif wanted in (int, float):
                value = wanted(text)
            elif wanted is not str and wanted is not None:
                value = [word for word in text.split() if word]
        except (ValueError, KeyError):
            raise UsageError(f"{variable}={text!r} is no {getattr(wanted, '__name__', wanted)}") from None
        source = f"environment {variable}"
        merged.put(f"{section}.{name}", _checked(kind, name, f"{section}.{name}", value, source), source)


def _checked(kind: type, name: str, key: str, value: Any, source: str) -> Any:
    hints = get_type_hints(kind)
    if name not in hints:
        raise _unknown(key, name, [item for item in hints if item != "name"], source)
    wanted = hints[name]
    if wanted is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if wanted in (str, int, float, bool):
        if type(value) is not wanted:
            raise UsageError(f"{source}: {key} = {value!r}", hint=f"it takes a value of type {wanted.__name__}")
        return value
    if not isinstance(value, list | tuple) or not all(isinstance(word, str) for word in value):
        raise UsageError(f"{source}: {key} = {value!r}", hint='it takes a list of words: ["one", "two"]')
    return tuple(value)


def _table(content: Any, name: str, source: str) -> None:
    if not isinstance(content, dict):
        raise UsageError(f"{source}: {name} = {content!r}", hint=f"it is a table: [{name}]")


def _unknown(what: str, name: str, known: Iterable[str], source: str) -> UsageError:
    known = list(known)
    close = difflib.get_close_matches(name, known, 1, 0.5)
    hint = f"did you mean {close[0]!r}?" if close else f"there are: {', '.join(known)}"
    return UsageError(f"{source}: {what} is not known", hint=hint)


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
    made = {}
    for name, content in hosts.items():
        if not content.get("address"):
            content["address"] = name
        made[name] = HostConfig(name=name, **content)
    _fill(merged, made)
    built = {section: SECTIONS[section](**content) for section, content in sections.items()}
    return Config(hosts=made, **built)


def _fill(merged: _Merged, hosts: Mapping[str, HostConfig]) -> None:
    """The defaults of hosts that are there, so that they are shown, too."""
    for name, host in hosts.items():
        for item in fields(HostConfig):
            key = f"hosts.{name}.{item.name}"
            if key not in merged.values and item.name != "name":
                value = getattr(host, item.name)
                merged.put(key, value, "the table's name" if item.default is MISSING else "default")
