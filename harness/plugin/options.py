# SPDX-License-Identifier: BSD-2-Clause
"""The options of a run, read and checked. harness.config.runoptions defines them; ``fxh`` passes their values as an Invocation."""

from __future__ import annotations

import argparse
import pickle
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest

from harness import paths
from harness.config import HostConfig, load
from harness.config.runoptions import OPTIONS, RunOption, RunOptions
from harness.errors import UsageError
from harness.guests import registry
from harness.guests.source import NO_ESP_HINT, GuestSource
from harness.hosts import pool
from harness.images import debugfile
from harness.lab import recipe
from harness.lab.factory import MEMORY, LabSpec
from harness.plugin import shard
from harness.xen.firmware import BIOS, UEFI

_GROUP = "freebsd-xen"
_PREFIX = "--fxh-"


@dataclass(frozen=True)
class Options(RunOptions):
    """The checked options of a run, without gaps: guests, Xen versions and the memory of a lab are always set."""

    worker: int = 0
    """The number of this xdist worker; 0 without xdist."""
    run_directory: Path | None = None
    """The directory for the results; None for a new one."""
    every_cell: bool = False
    """Collect the cases in all possible cells. For `fxh list --all`: no such case can run."""

    @property
    def rerun_options(self) -> dict[str, str]:
        """The options of a re-run command, as ``fxh run`` has them, without those left to their defaults."""
        values = {option.name: (option, getattr(self, option.attribute)) for option in OPTIONS.values() if option.rerun}
        return {name: str(option.write(value)) for name, (option, value) in values.items() if value != option.default}

    @property
    def results(self) -> Path:
        """The directory with the results of all runs, and with the page of the latest."""
        return self.reports or paths.workspace() / "reports"

    def lab_spec(self, xen: str) -> LabSpec:
        """The lab with this Xen version."""
        return LabSpec(xen, self.hypervisor, self.dom0_kernel, memory=self.lab_memory, cpus=self.lab_cpus, accel=self.accel)


@dataclass(frozen=True, eq=False)
class Invocation:
    """A pytest plugin with the options of an ``fxh`` command: pytest's command line does not hold them."""

    given: Mapping[str, Any]
    """The values of the command line, by key of harness.config.runoptions.OPTIONS."""
    run_directory: Path | None
    every_cell: bool = field(default=False, kw_only=True)

    @pytest.hookimpl(tryfirst=True)
    def pytest_configure(self, config: pytest.Config) -> None:
        config.stash[_INVOCATION] = self


_INVOCATION = pytest.StashKey[Invocation]()


# -- pytest's command line --------------------------------------------------------------------------------------------


def add(parser: pytest.Parser) -> None:
    """Declare ``--fxh-guest`` and so on."""
    group = parser.getgroup(_GROUP, "FreeBSD under Xen (freebsd-xen-harness)")
    for option in _pytest_options():
        group.addoption(_PREFIX + option.name, **_declaration(option), help=option.help.replace("%", "%%"))
    group.addoption(f"{_PREFIX}run", default="", help=argparse.SUPPRESS)


def accept_old_names(config: pytest.Config, parser: pytest.Parser, args: Sequence[str]) -> None:
    """Accept the option names of ``args`` that lack the prefix ``--fxh-``, with a warning, unless another plugin has them.

    Undeclared, they stay free for other plugins and conftest.py files. Raises pytest.UsageError if warnings are errors.
    """
    old = {f"--{option.name}": option for option in _pytest_options()}
    _, unknown = parser.parse_known_and_unknown_args(args)
    group = parser.getgroup(_GROUP)
    for name in sorted({word.partition("=")[0] for word in unknown} & old.keys()):
        group.addoption(name, **_declaration(old[name]), help=argparse.SUPPRESS)
        warning = pytest.PytestDeprecationWarning(f"{name} is deprecated: use {_PREFIX}{old[name].name}")
        try:
            config.issue_config_time_warning(warning, stacklevel=2)
        except pytest.PytestDeprecationWarning as exc:
            raise pytest.UsageError(str(exc)) from None


def _pytest_options() -> list[RunOption]:
    return [option for option in OPTIONS.values() if option.flags and option.pytest]


def _declaration(option: RunOption) -> dict[str, Any]:
    return {"dest": f"fxh_{option.key}", "type": option.written, "default": None, "metavar": option.name.upper()}


# -- the values -------------------------------------------------------------------------------------------------------


def read(config: pytest.Config) -> Options:
    """The options of ``fxh`` or of pytest's command line, completed from ``fxh.toml``; in a worker those of its controller.

    Raises UsageError for an invalid value and for options that exclude each other.
    """
    worker = getattr(config, "workerinput", None)
    if worker is not None:
        options = pickle.loads(worker["fxh_options"])
        assert isinstance(options, Options)
        return replace(options, worker=_worker_number(str(worker["workerid"])))
    invocation = config.stash.get(_INVOCATION, None) or _from_command_line(config)
    given = invocation.given
    loaded = load({f"run.{key}": value for key, value in given.items()}).config
    options = Options(**vars(loaded.run), run_directory=invocation.run_directory, every_cell=invocation.every_cell)
    return _checked(options, loaded.hosts)


def _from_command_line(config: pytest.Config) -> Invocation:
    given = {option.key: config.getoption(f"fxh_{option.key}") for option in _pytest_options()}
    path = str(config.getoption("fxh_run"))
    return Invocation(given, Path(path) if path else None)


def for_worker(options: Options) -> bytes:
    """The input of :func:`read` in a worker."""
    return pickle.dumps(options)


def _worker_number(name: str) -> int:
    """3 for xdist's ``gw3``."""
    return int(name.removeprefix("gw")) if name.startswith("gw") else 0


def _checked(options: Options, hosts: Mapping[str, HostConfig]) -> Options:
    """``options`` with the defaults that depend on other options. Raises UsageError."""
    _check_files(options)
    if options.image and (options.disk or options.kernel):
        raise UsageError(
            f"--image with --{'disk' if options.disk else 'kernel'}: an image has its own kernel and disks",
            hint="omit --disk and --kernel, or replace the image's kernel: fxh image build --base",
        )
    if options.kernel is not None and options.disk is None:
        raise UsageError("--kernel without --disk", hint="add --disk FILE, the image with the root file system")
    if options.bootloader and not options.image:
        raise UsageError(f"--bootloader {options.bootloader} without --image", hint="add --image IMAGE")
    has_disk = bool(options.disk or options.image)
    guests = options.guests or registry.default(has_disk)
    for guest in registry.under_test(guests):
        if not has_disk:
            raise UsageError(f"--guest {guest} without its disk", hint="add --image IMAGE or --disk DISK")
    if UEFI in options.firmwares and options.types and "hvm" not in options.types:
        raise UsageError(
            f"--firmware uefi with --type {','.join(options.types)}", hint="only HVM guests have a firmware: --type hvm"
        )
    pool.select_hosts(options.host, hosts)
    shard.parse(options.shard)
    if options.walk_seed and not options.walk:
        raise UsageError(f"--walk-seed {options.walk_seed} without --walk", hint="add --walk 10m")
    for xen in options.xens if not options.host else ():
        if xen not in recipe.available():
            raise UsageError(f"--xen {xen}: no lab recipe", hint=f"valid versions: {', '.join(recipe.available())}")
    # One seed for all workers and for a case that runs again after it lost its host.
    seed = options.walk_seed or (secrets.randbelow(1 << 31) + 1 if options.walk else 0)
    symbols = tuple(debugfile.chosen(path)[0] for path in options.symbols)
    xens = options.xens or (recipe.DEFAULT_XEN,)
    return replace(options, guests=guests, xens=xens, lab_memory=options.lab_memory or MEMORY, symbols=symbols, walk_seed=seed)


def _check_files(options: Options) -> None:
    for key in ("kernel", "disk", "hypervisor", "dom0_kernel", "walk_replay"):
        path = getattr(options, key)
        if path is not None and not path.is_file():
            raise UsageError(f"--{OPTIONS[key].name} {path}: no such file", hint="check the path")
    for name in ("vmlinuz", "initrd") if options.control is not None else ():
        if options.control is not None and not (options.control / name).is_file():
            raise UsageError(f"--control {options.control}: no {name} in it", hint="use a directory with vmlinuz and initrd")


def check_firmwares(options: Options, source: GuestSource) -> None:
    """Raises UsageError if none of the requested HVM guests of ``source`` can start with a requested firmware.

    If other types are requested too, a UEFI-only disk runs as these types, and its BIOS cells are skipped.
    """
    types = options.types or source.os.types
    if not registry.under_test(options.guests) or "hvm" not in types or "hvm" not in source.os.types:
        return
    if UEFI in options.firmwares and (why := source.why_no_uefi):
        raise UsageError(why, hint=NO_ESP_HINT)
    if BIOS in options.firmwares and set(types) == {"hvm"} and (why := source.why_no_bios):
        raise UsageError(why, hint="--firmware uefi, or another --type")
