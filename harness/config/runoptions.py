# SPDX-License-Identifier: BSD-2-Clause
"""The options of a run. Each is defined once, here: as a field of :class:`RunOptions`.

A field defines the option of ``fxh run``, that of pytest, the key of ``[run]`` in ``fxh.toml`` and its environment variable. It also
defines the word in a re-run command. :data:`OPTIONS` lists all of this by key.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, get_origin, get_type_hints

from harness.config import checks, databaseurl, duration

GUEST_TYPES = ("pv", "pvh", "hvm", "pvshim")
FIRMWARES = ("bios", "uefi")
ACCELERATORS = ("auto", "tcg", "kvm")
PAUSES = ("before-call", "on-failure")
"""Where ``pause`` stops a case."""
LEAST_LAB_MEMORY = 1280
"""MiB. dom0 takes 768."""
MOST_LAB_CPUS = 16


@dataclass(frozen=True)
class RunOption:
    """How users write one field of :class:`RunOptions`."""

    attribute: str
    kind: type
    """``str``, ``int``, ``float``, ``bool``, ``Path``, or ``tuple`` for words or paths with commas between them."""
    default: Any
    paths: bool = False
    """The parts of a ``tuple`` are paths."""
    flags: tuple[str, ...] = ()
    """As ``fxh`` has them. Empty for a setting of ``fxh.toml`` alone."""
    help: str = ""
    values: tuple[str, ...] = ()
    """The allowed words; empty if any will do."""
    check: checks.Check | None = None
    """For a value that is neither one of ``values`` nor any text. It gets the words of a ``tuple`` one by one."""
    complete: str = ""
    """The function of harness.cli.completion that knows the values, for values that are known at run time only."""
    fxh: bool = True
    """``fxh run`` has it."""
    pytest: bool = True
    """pytest has it, as ``--fxh-NAME``."""
    toml: bool = False
    """``[run]`` of ``fxh.toml`` and the environment (``FXH_RUN_KEY``) have it."""
    rerun: bool = False
    """A re-run command repeats it if it is not the default."""
    database: bool = False
    """The value is the URL of a database. No message shows more of it than its server and its name."""

    @property
    def name(self) -> str:
        """``xen-host``: the long flag without its dashes."""
        return self.flags[-1].removeprefix("--") if self.flags and self.flags[-1].startswith("--") else self.attribute

    @property
    def key(self) -> str:
        """``xen_host``: in ``fxh.toml``, and in what the command line gives."""
        return self.name.replace("-", "_")

    @property
    def written(self) -> type:
        """The type of the value in ``fxh.toml``."""
        return str if self.kind in (tuple, Path) else self.kind

    def write(self, value: Any) -> Any:
        """The value of the field as ``fxh.toml`` has it."""
        if self.kind is tuple:
            return ",".join(map(str, value))
        return str(value or "") if self.kind is Path else value

    def read(self, value: Any) -> Any:
        """The value of the field, from a value of ``fxh.toml`` or of a command line."""
        if self.kind is tuple:
            words = dict.fromkeys(word for word in map(str.strip, value.split(",")) if word)
            return tuple(map(_absolute, words) if self.paths else words) or self.default
        if self.kind is Path:
            return _absolute(value) if str(value) else None
        return self.default if value == "" else value

    def problem(self, value: Any) -> tuple[str, str]:
        """The word of ``value`` (see :meth:`read`) that is invalid, and the hint; two empty strings if the value is valid."""
        check = self.check or (checks.one_of(*self.values) if self.values else checks.text)
        words = value if self.kind is tuple else (value,)
        if self.kind in (bool, Path) or value == self.default:
            return "", ""
        return next(((str(word), hint) for word in words if (hint := check(word))), ("", ""))

    def shown(self, value: Any) -> Any:
        """A value of ``fxh.toml`` as messages may have it: without secrets."""
        return databaseurl.shown(str(value)) if self.database and value else value


def _absolute(value: str | Path) -> Path:
    return Path(value).expanduser().absolute()


def option(*flags: str, help: str, **more: Any) -> Mapping[str, Any]:
    """The metadata of a field that is an option; ``more`` as the fields of :class:`RunOption`."""
    return {"flags": flags, "help": help, **more}


@dataclass(frozen=True)
class RunOptions:
    """The options of a run, in the order of ``fxh run --help``. Those without flags are settings of ``fxh.toml`` alone."""

    keyword: str = field(
        default="", metadata=option("-k", help="Run only the cases that match this expression, as pytest's -k.", pytest=False)
    )
    workers: int = field(
        default=1,
        metadata=option(
            "-n",
            "--workers",
            check=checks.between(0, 1000),
            help=(
                "Run this many workers in parallel, each on its own lab or share of a host (default: 1). "
                "0: as many labs as this machine can run."
            ),
            pytest=False,
            toml=True,
        ),
    )
    guests: tuple[str, ...] = field(
        default=(),
        metadata=option(
            "--guest",
            help="Test these guests (comma-separated), such as control,freebsd (default: freebsd with --image or --disk, else control).",
            complete="guests",
            toml=True,
            rerun=True,
        ),
    )
    types: tuple[str, ...] = field(
        default=(),
        metadata=option(
            "--type",
            help="Test these guest types (comma-separated): pv, pvh, hvm, pvshim for PV in the PV shim (default: all that the guest supports).",
            values=GUEST_TYPES,
            toml=True,
            rerun=True,
        ),
    )
    pvshim: bool = field(
        default=False, metadata=option("--pvshim", help="Test PV in the PV shim; the same as --type pvshim.", pytest=False)
    )
    firmwares: tuple[str, ...] = field(
        default=("bios",),
        metadata=option(
            "--firmware",
            help="Start HVM guests with these firmwares (comma-separated): bios, uefi (default: bios).",
            values=FIRMWARES,
            toml=True,
            rerun=True,
        ),
    )
    xens: tuple[str, ...] = field(
        default=(),
        metadata=option(
            "--xen",
            help="Use labs with these Xen versions (comma-separated; default: 4.20).",
            complete="xens",
            toml=True,
            rerun=True,
        ),
    )
    kernel: Path | None = field(
        default=None, metadata=option("--kernel", help="Boot this FreeBSD kernel (default: the kernel on the disk).", rerun=True)
    )
    disk: Path | None = field(
        default=None,
        metadata=option(
            "--disk", help="Boot this FreeBSD disk image: raw or qcow2, also in .xz; nothing writes to it.", rerun=True
        ),
    )
    image: str = field(
        default="",
        metadata=option(
            "--image",
            help="Boot this FreeBSD image: a name from `fxh image list`, or the directory of an exported image.",
            complete="images",
            rerun=True,
        ),
    )
    bootloader: str = field(
        default="",
        metadata=option(
            "--bootloader",
            help="Load the kernel of --image with this boot loader in dom0: pygrub (default: xl loads the kernel file).",
            values=("pygrub",),
            rerun=True,
        ),
    )
    root: str = field(
        default="",
        metadata=option(
            "--root",
            help="Mount this root device: xbd0p2, gpt/rootfs or zfs:POOL/DATASET (default: read from the disk).",
            rerun=True,
        ),
    )
    host: str = field(
        default="",
        metadata=option(
            "--xen-host",
            help="Use these Xen hosts (comma-separated): names or tag:TAG of fxh.toml, user@host, local, lab, labgrid:TAG=VALUE (default: lab).",
            complete="hosts",
            toml=True,
            rerun=True,
        ),
    )
    hypervisor: Path | None = field(
        default=None,
        metadata=option(
            "--hypervisor", help="Boot the lab with this hypervisor, xen.gz or ELF (default: the lab's own).", rerun=True
        ),
    )
    dom0_kernel: Path | None = field(
        default=None,
        metadata=option(
            "--dom0-kernel", help="Boot the lab's dom0 with this kernel, vmlinuz (default: the lab's own).", rerun=True
        ),
    )
    accel: str = field(
        default="auto",
        metadata=option(
            "--accel",
            help="Run the lab's QEMU with this accelerator: kvm, tcg, auto for kvm where it works (default: auto).",
            values=ACCELERATORS,
            toml=True,
            rerun=True,
        ),
    )
    scale: float = field(
        default=1.0,
        metadata=option(
            "--scale",
            help="Multiply every time limit of a guest by this number (default: 1).",
            check=checks.positive(1000),
            toml=True,
            rerun=True,
        ),
    )
    control: Path | None = field(
        default=None,
        metadata=option(
            "--control",
            help="Boot the control guest from this directory with vmlinuz and initrd (default: the lab's own).",
            rerun=True,
        ),
    )
    symbols: tuple[Path, ...] = field(
        default=(),
        metadata=option(
            "--symbols",
            help="Read source lines from these files (comma-separated): kernel.debug, vmlinux, xen-syms, or an unpacked kernel-dbg.txz.",
            paths=True,
        ),
    )
    branch: str = field(
        default="",
        metadata=option(
            "--branch",
            help="Judge the run against earlier runs of this branch, such as stable/14 (default: runs without a branch).",
        ),
    )
    with_release: bool = field(
        default=False,
        metadata=option(
            "--with-release",
            help="Test the current FreeBSD release and the control guest, if the release can be fetched.",
            pytest=False,
        ),
    )
    exitfirst: bool = field(default=False, metadata=option("-x", help="Stop at the first failure.", pytest=False))
    keep: str = field(
        default="never",
        metadata=option(
            "--keep",
            help="failed: keep a dead guest paused for run.keep_minutes, to inspect it. dump: keep the kernel dump of a FreeBSD guest "
            "that panics in a failed case, up to 256 MiB (default: never).",
            values=("never", "failed", "dump"),
            toml=True,
        ),
    )
    pause: str = field(
        default="",
        metadata=option(
            "--pause",
            help="Stop at this case and hand over its console, a dom0 shell and a debugger: CASE, CASE:before-call, CASE:on-failure.",
            complete="pauses",
            pytest=False,
        ),
    )
    walk: str = field(
        default="",
        metadata=option(
            "--walk",
            help="Run the random walk of the suite lifecycle for this long: 90s, 10m, 1h.",
            check=checks.parsed_by(duration.seconds),
            rerun=True,
        ),
    )
    walk_seed: int = field(
        default=0,
        metadata=option(
            "--walk-seed",
            help="Draw the steps of --walk from this seed (default: a new one).",
            check=checks.between(0, (1 << 63) - 1),
            rerun=True,
        ),
    )
    """0 for a new one, which the controller draws: all workers and attempts of a run have the same."""
    walk_replay: Path | None = field(
        default=None,
        metadata=option("--walk-replay", help="Repeat the shortest failing sequence of this walk.json instead of a random walk."),
    )
    fail_on: tuple[str, ...] = field(
        default=(),
        metadata=option(
            "--fail-on",
            help="Also fail on these (comma-separated): complaint, for a complaint that no earlier run had in its cell.",
            values=("complaint",),
            pytest=False,
            toml=True,
        ),
    )
    shard: str = field(default="", metadata=option("--shard", help="Run part I of N equal parts, as I/N (default: all cases)."))
    resume: str = field(
        default="",
        metadata=option(
            "--resume", help="Complete an unfinished run (name, path or latest): run the cases without a verdict.", pytest=False
        ),
    )
    reports: Path | None = field(
        default=None, metadata=option("--reports", help="Write results into this directory (default: reports/).")
    )
    lab_memory: int = field(
        default=0,
        metadata=option(
            "--lab-memory",
            help="Give a lab this many MiB of memory (default: 3072).",
            check=checks.zero_or(checks.between(LEAST_LAB_MEMORY, checks.MOST_MEMORY)),
            fxh=False,
            toml=True,
        ),
    )
    """0 for the lab's own default."""
    lab_cpus: int = field(
        default=1,
        metadata=option(
            "--lab-cpus",
            help="Give a lab this many virtual CPUs (default: 1).",
            check=checks.between(1, MOST_LAB_CPUS),
            fxh=False,
            toml=True,
        ),
    )
    keep_minutes: int = field(default=60, metadata={"check": checks.between(1, checks.YEAR // 60), "toml": True})
    """Minutes for which ``keep`` holds a guest."""
    history: str = field(default="", metadata={"check": databaseurl.check, "database": True, "toml": True})
    """The URL of a PostgreSQL database with the history of all controllers; empty for a SQLite file in ``reports``.

    It has no flag: all commands need the same history, and other users can read a command line.
    """
    keep_runs: int = field(default=30, metadata={"check": checks.between(1, 1_000_000), "toml": True})
    """Number of run directories that stay in ``reports``."""
    lease_memory: int = field(default=0, metadata={"check": checks.between(0, checks.MOST_MEMORY), "toml": True})
    """MiB that a worker leases on a host; 0 for twice the memory of one guest."""
    lease_wait: int = field(default=3600, metadata={"check": checks.between(0, checks.YEAR), "toml": True})
    """Seconds that a worker waits for a host with room."""


def _read_table() -> Mapping[str, RunOption]:
    hints = get_type_hints(RunOptions)
    made = []
    for item in fields(RunOptions):
        hint = hints[item.name]
        kind = get_origin(hint) or hint
        kind = kind if isinstance(kind, type) and kind in (str, int, float, bool, tuple) else Path
        made.append(RunOption(item.name, kind, item.default, **item.metadata))
    return {one.key: one for one in made}


OPTIONS: Mapping[str, RunOption] = _read_table()
"""By key, in the order of the fields."""


def of_words(given: Mapping[str, Any]) -> RunOptions:
    """The options from values by key, as ``fxh.toml`` or a command line has them; defaults for the rest."""
    return RunOptions(**{OPTIONS[key].attribute: OPTIONS[key].read(value) for key, value in given.items()})
