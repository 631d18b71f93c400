# SPDX-License-Identifier: BSD-2-Clause
"""What a run was asked for: pytest's options as one value."""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path

import pytest

from harness import paths
from harness.config import load
from harness.errors import UsageError
from harness.guests import registry
from harness.guests.source import NO_ESP_MEND, GuestSource
from harness.hosts import pool
from harness.lab import recipe
from harness.lab.factory import MEMORY, LabSpec
from harness.plugin import shard
from harness.xen import firmware
from harness.xen.config import TYPES
from harness.xen.firmware import BIOS, UEFI


@dataclass(frozen=True)
class Options:
    """See the help texts in :func:`add`."""

    guests: tuple[str, ...]
    types: tuple[str, ...]
    firmwares: tuple[str, ...]
    xens: tuple[str, ...]
    kernel: Path | None
    disk: Path | None
    image: str
    bootloader: str
    root: str
    host: str
    """Real hosts by commas (see harness.hosts.pool.select_hosts); empty for a lab."""
    scale: float
    hypervisor: Path | None
    dom0_kernel: Path | None
    lab_memory: int
    lab_cpus: int
    accel: str
    control: Path | None = None
    branch: str = ""
    lease_memory: int = 0
    lease_wait: int = 3600
    keep: str = "never"
    keep_minutes: int = 60
    keep_runs: int = 30
    worker: int = 0

    @property
    def chosen(self) -> dict[str, str]:
        """What was said, as words for ``fxh run``: without what was left to its default."""
        said: dict[str, object] = {
            "guest": ",".join(self.guests),
            "type": ",".join(self.types),
            "firmware": ",".join(self.firmwares) if self.firmwares != (BIOS,) else "",
            "xen": ",".join(self.xens),
            "kernel": self.kernel,
            "disk": self.disk,
            "image": self.image,
            "bootloader": self.bootloader,
            "root": self.root,
            "control": self.control,
            "xen-host": self.host,
            "hypervisor": self.hypervisor,
            "dom0-kernel": self.dom0_kernel,
            "scale": self.scale if self.scale != 1 else "",
            "accel": self.accel if self.accel != "auto" else "",
        }
        return {name: str(value) for name, value in said.items() if value}

    def wish(self, xen: str) -> LabSpec:
        return LabSpec(xen, self.hypervisor, self.dom0_kernel, memory=self.lab_memory, cpus=self.lab_cpus, accel=self.accel)


def add(parser: pytest.Parser) -> None:
    """Declare the options; ``fxh run`` has the same."""
    group = parser.getgroup("freebsd-xen", "FreeBSD under Xen (freebsd-xen-harness)")
    group.addoption(
        "--guest",
        default="",
        help="guests to test, by commas: control, freebsd (default: control, or freebsd with --disk or --image)",
    )
    group.addoption(
        "--type",
        dest="guest_type",
        default="",
        help="guest types, by commas: pv, pvh, hvm (default: all that guest and host can); pvshim: pv in the PV shim",
    )
    group.addoption(
        "--firmware", default="", help="firmwares of HVM guests, by commas: bios, uefi (default: bios); each is a cell of its own"
    )
    group.addoption("--xen", default="", help=f"Xen versions of the lab, by commas: {', '.join(recipe.available_quietly())}")
    group.addoption("--kernel", default="", help="a FreeBSD kernel to boot, instead of the disk's own")
    group.addoption("--disk", default="", help="a FreeBSD disk image: raw or qcow2, perhaps in xz; it is not written to")
    group.addoption(
        "--image",
        default="",
        help="a FreeBSD image of the store (fxh image list) or an exported one's directory, instead of --disk",
    )
    group.addoption("--bootloader", default="", help="with --image: pygrub, so that dom0 reads the kernel from the disk")
    group.addoption(
        "--root", default="", help="the guest's root device: xbd0p2, gpt/rootfs, zfs:POOL/DATASET (default: what the disk says)"
    )
    group.addoption("--control", default="", help="a control guest of your own: a directory with its vmlinuz and initrd")
    group.addoption("--branch", default="", help="the line of development that is tested, for verdicts (main, stable/14)")
    group.addoption("--fxh-everywhere", action="store_true", help=argparse.SUPPRESS)
    group.addoption(
        "--xen-host",
        default="",
        help="real Xen hosts, by commas: names or tag:TAG of fxh.toml, user@host, local, lab (default: a lab)",
    )
    group.addoption("--scale", type=float, default=None, help="stretches every time budget of a guest")
    group.addoption("--hypervisor", default="", help="the lab's hypervisor: a xen.gz of your own")
    group.addoption("--dom0-kernel", default="", help="the lab's dom0 kernel: a vmlinuz of your own")
    group.addoption("--lab-memory", type=int, default=None, help="MiB of a lab")
    group.addoption("--lab-cpus", type=int, default=None, help="virtual CPUs of a lab")
    group.addoption("--accel", default="", choices=("", "auto", "tcg", "kvm"), help="how QEMU runs a lab")
    group.addoption(
        "--keep", default="", choices=("", "never", "failed"), help="failed: leave a dead guest paused, to be looked at"
    )
    group.addoption("--shard", default="", help="i/n: the i-th of n parts of all cases, the same everywhere")
    group.addoption("--resume", action="store_true", default=False, help=argparse.SUPPRESS)
    group.addoption("--fxh-run", default="", help=argparse.SUPPRESS)
    group.addoption(
        "--reports", default="", help="where results go (default: reports/ of the checkout, else of the current directory)"
    )


def read(config: pytest.Config) -> Options:
    """Raises UsageError for what cannot be. What the command line does not say comes from ``fxh.toml``."""
    loaded = load(
        {
            f"run.{key}": config.getoption(option)
            for key, option in (
                ("guest", "guest"), ("type", "guest_type"), ("firmware", "firmware"), ("xen", "xen"), ("xen_host", "xen_host"), ("scale", "scale"),
                ("accel", "accel"), ("lab_memory", "lab_memory"), ("lab_cpus", "lab_cpus"), ("keep", "keep"),
            )
        }
    )  # fmt: skip
    run = loaded.config.run

    def words(name: str) -> tuple[str, ...]:
        given = str(getattr(run, {"guest_type": "type"}.get(name, name)))
        return tuple(filter(None, (word.strip() for word in given.split(","))))

    def path(name: str) -> Path | None:
        text = str(config.getoption(name))
        if not text:
            return None
        found = Path(text).expanduser().absolute()
        if not found.is_file():
            raise UsageError(f"--{name.replace('_', '-')} {text}: no such file")
        return found

    kernel, disk = path("kernel"), path("disk")
    if kernel is not None and disk is None:
        raise UsageError("--kernel without a disk", hint="add --disk FILE, the image with the root file system")
    image = str(config.getoption("image"))
    if image and disk:
        raise UsageError(
            "--image brings its kernel and disks", hint="leave --kernel and --disk out, or swap the kernel: fxh image build"
        )
    bootloader = str(config.getoption("bootloader"))
    if bootloader not in ("", "pygrub") or (bootloader and not image):
        raise UsageError(f"--bootloader {bootloader}", hint="--image IMAGE --bootloader pygrub")
    guests = words("guest") or registry.default(bool(disk or image))
    for guest in registry.under_test(guests):
        if disk is None and not image:
            raise UsageError(
                f"--guest {guest} needs a {registry.definition(guest).os.title}", hint="add --image IMAGE, or --disk DISK"
            )
    types = words("guest_type")
    for guest_type in types:
        if guest_type not in (*TYPES, "pvshim"):
            raise UsageError(f"--type {guest_type}", hint=f"{', '.join(TYPES)} or pvshim")
    firmwares = tuple(dict.fromkeys(words("firmware"))) or (BIOS,)
    for name in firmwares:
        firmware.check(name)
    if UEFI in firmwares and types and "hvm" not in types:
        raise UsageError(f"--firmware uefi with --type {','.join(types)}", hint="only HVM guests start from a firmware: --type hvm")
    xens = words("xen") or (recipe.DEFAULT_XEN,)
    pool.select_hosts(run.xen_host, loaded.config.hosts)
    shard.parse(str(config.getoption("shard")))
    if run.keep not in ("never", "failed"):
        raise UsageError(f"run.keep {run.keep!r}", hint="never or failed")
    if run.accel not in ("auto", "tcg", "kvm"):
        raise UsageError(f"run.accel {run.accel!r}", hint="auto, tcg or kvm")
    if not run.xen_host:
        for xen in xens:
            if words("xen") and xen not in recipe.available():
                raise UsageError(f"--xen {xen}: no lab recipe", hint=f"there are: {', '.join(recipe.available())}")
    control = Path(str(config.getoption("control"))).absolute() if config.getoption("control") else None
    for name in ("vmlinuz", "initrd") if control else ():
        if control is not None and not (control / name).is_file():
            raise UsageError(f"--control {control}: no {name} in it", hint="give a directory with vmlinuz and initrd")
    scale = run.scale
    if scale <= 0:
        raise UsageError(f"--scale {scale}", hint="a number above 0")
    return Options(
        guests=guests,
        types=types,
        firmwares=firmwares,
        xens=xens,
        kernel=kernel,
        disk=disk,
        image=image,
        bootloader=bootloader,
        root=str(config.getoption("root")),
        host=run.xen_host,
        scale=scale,
        hypervisor=path("hypervisor"),
        dom0_kernel=path("dom0_kernel"),
        control=control,
        branch=str(config.getoption("branch")),
        lab_memory=run.lab_memory or MEMORY,
        lab_cpus=run.lab_cpus,
        accel=run.accel,
        lease_memory=run.lease_memory,
        lease_wait=run.lease_wait,
        keep=run.keep,
        keep_minutes=run.keep_minutes,
        keep_runs=run.keep_runs,
        worker=_worker(config),
    )


def check_firmwares(options: Options, source: GuestSource) -> None:
    """Raises UsageError where an HVM guest of ``source`` is asked for with a firmware that cannot start its disk.

    Where other types are asked for, too, a disk for UEFI alone runs as these: its HVM cells for BIOS are skipped.
    """
    types = options.types or source.profile.types
    if not registry.under_test(options.guests) or "hvm" not in types or "hvm" not in source.profile.types:
        return
    if UEFI in options.firmwares and (why := source.why_no_uefi):
        raise UsageError(why, hint=NO_ESP_MEND)
    if BIOS in options.firmwares and set(types) == {"hvm"} and (why := source.why_no_bios):
        raise UsageError(why, hint="--firmware uefi, or another --type")


def _worker(config: pytest.Config) -> int:
    """The number of this xdist worker (``gw3``), 0 without xdist."""
    name = str(getattr(config, "workerinput", {}).get("workerid", ""))
    return int(name.removeprefix("gw")) if name.startswith("gw") else 0


def reports(config: pytest.Config) -> Path:
    """Where runs and the page of the latest are kept."""
    given = str(config.getoption("reports"))
    return Path(given).absolute() if given else paths.workspace() / "reports"
