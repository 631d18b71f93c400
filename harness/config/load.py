# SPDX-License-Identifier: BSD-2-Clause
"""The layers of the configuration. Each covers the ones before it: default, user, project, environment, command line."""

from __future__ import annotations

import contextlib
import functools
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import MISSING, Field, dataclass, field, fields, replace
from pathlib import Path
from typing import Any, get_origin, get_type_hints

import platformdirs

from harness import paths
from harness.config import runoptions
from harness.config.schema import SECTIONS, Config, HostConfig
from harness.errors import UsageError

NAME = "fxh.toml"
COMMAND_LINE = "command line"
_HINTS = {
    str: 'set a string, such as "one" or "one,two"',
    int: "set a whole number",
    float: "set a number",
    bool: "set true or false",
    tuple: 'set a list of strings: ["one", "two"]',
}
_WORDS = {"1": True, "true": True, "yes": True, "0": False, "false": False, "no": False}
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
    errors: list[UsageError] = field(default_factory=list)

    def put(self, key: str, value: Any, source: str) -> None:
        self.values[key] = Value(key, value, source)

    @contextlib.contextmanager
    def collecting(self) -> Iterator[None]:
        """Keep a UsageError, so that one message can name all of them."""
        try:
            yield
        except UsageError as exc:
            self.errors.append(exc)

    def raise_errors(self) -> None:
        if self.errors:
            *others, last = self.errors
            raise UsageError("\n".join([*map(str, others), last.message]), hint=last.hint)


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

    Raises UsageError for an unreadable file, and one for all unknown keys (the hint suggests the closest one), wrong types and invalid
    values of all layers.
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
            with merged.collecting():
                merged.put(key, _checked(SECTIONS[section], name, key, value, COMMAND_LINE), COMMAND_LINE)
    merged.raise_errors()
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
        with merged.collecting():
            if section not in (*SECTIONS, "hosts"):
                raise _unknown(f"[{section}]", section, [*SECTIONS, "hosts"], layer.source)
            _require_table(content, section, layer.source)
            for name, value in content.items():
                with merged.collecting():
                    if section == "hosts":
                        _merge_host(merged, name, value, layer.source)
                    else:
                        key = f"{section}.{name}"
                        merged.put(key, _checked(SECTIONS[section], name, key, value, layer.source), layer.source)


def _merge_host(merged: _Merged, name: str, content: Any, source: str) -> None:
    if not _HOST.fullmatch(name):
        raise UsageError(f"{source}: invalid host name {name!r}", hint="use at most 41 letters, digits, '.' and '-'")
    _require_table(content, f"hosts.{name}", source)
    for key, value in content.items():
        dotted = f"hosts.{name}.{key}"
        with merged.collecting():
            if key == "name":
                raise UsageError(f"{source}: unknown key {dotted}", hint="delete the key: the table's name is the host's name")
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
        kind, key, source = SECTIONS[section], f"{section}.{name}", f"environment {variable}"
        with merged.collecting():
            merged.put(key, _checked(kind, name, key, _parsed(_types(kind).get(name), text), source), source)


def _parsed(wanted: Any, text: str) -> Any:
    """The value of an environment variable, or the text itself if it is not of the type ``wanted``."""
    if wanted is tuple:
        return text.replace(",", " ").split()
    try:
        return _WORDS.get(text.lower(), text) if wanted is bool else wanted(text) if wanted in (int, float) else text
    except ValueError:
        return text


@functools.cache
def _types(kind: type) -> Mapping[str, Any]:
    """The keys of a table of ``fxh.toml`` and their types: ``str``, ``int``, ``float``, ``bool``, ``tuple``, or what a reader makes."""
    if kind is runoptions.RunOptions:
        return {key: option.written for key, option in runoptions.OPTIONS.items() if option.toml}
    return {name: get_origin(hint) or hint for name, hint in get_type_hints(kind).items()}


@functools.cache
def _fields(kind: type) -> Mapping[str, Field[Any]]:
    return {item.name: item for item in fields(kind)}


def _checked(kind: type, name: str, key: str, value: Any, source: str) -> Any:
    """The value as the table has it. Raises UsageError for an unknown key, a wrong type and an invalid value."""
    if kind is runoptions.RunOptions and source == COMMAND_LINE:
        return _checked_option(runoptions.OPTIONS[name], key, value, source)
    types = _types(kind)
    if name not in types:
        raise _unknown(key, name, [item for item in types if item != "name"], source)
    if kind is not runoptions.RunOptions and (read := _fields(kind)[name].metadata.get("read")):
        return read(value, f"{source}: {key}")
    wanted = types[name]
    if wanted is float and type(value) is int:
        value = float(value)
    if wanted is tuple and isinstance(value, list) and all(isinstance(word, str) for word in value):
        value = tuple(value)
    if type(value) is not wanted:
        raise UsageError(f"{source}: {key} = {_shown(key, value)!r}: wrong type", hint=_HINTS[wanted])
    if kind is runoptions.RunOptions:
        return _checked_option(runoptions.OPTIONS[name], key, value, source)
    item = _fields(kind)[name]
    check = item.metadata.get("check")
    if check and value != item.default:
        for word in value if wanted is tuple else (value,):
            if hint := check(word):
                raise UsageError(f"{source}: {key} = {word!r}: invalid value", hint=hint)
    return value


def _checked_option(option: runoptions.RunOption, key: str, value: Any, source: str) -> Any:
    word, hint = option.problem(option.read(value))
    if hint:
        where = f"--{option.name} {word}" if source == COMMAND_LINE else f"{source}: {key} = {option.shown(value)!r}"
        raise UsageError(f"{where}: invalid value", hint=hint)
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
