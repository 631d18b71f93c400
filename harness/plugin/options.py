"""What a run was asked for: pytest's options as one value."""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path

import pytest

from harness import paths
from harness.errors import UsageError
from harness.lab import recipe
from harness.lab.factory import MEMORY, LabWish


@dataclass(frozen=True)
class Options:
    """See the help texts in :func:`add`."""

    guests: tuple[str, ...]
    types: tuple[str, ...]
    xens: tuple[str, ...]
    kernel: Path | None
    disk: Path | None
    image: str
    bootloader: str
    root: str
    host: str
    scale: float
    hypervisor: Path | None
    dom0_kernel: Path | None
    lab_memory: int
    lab_cpus: int
    accel: str
    control: Path | None = None
    branch: str = ""

    @property
    def chosen(self) -> dict[str, str]:
        """What was said, as words for ``fxh run``: without what was left to its default."""
        said: dict[str, object] = {
            "guest": ",".join(self.guests),
            "type": ",".join(self.types),
            "xen": ",".join(self.xens),
            "kernel": self.kernel,
            "disk": self.disk,
            "root": self.root,
            "control": self.control,
            "xen-host": self.host,
            "hypervisor": self.hypervisor,
            "dom0-kernel": self.dom0_kernel,
            "scale": self.scale if self.scale != 1 else "",
            "accel": self.accel if self.accel != "auto" else "",
        }
        return {name: str(value) for name, value in said.items() if value}

    def wish(self, xen: str) -> LabWish:
        return LabWish(xen, self.hypervisor, self.dom0_kernel, memory=self.lab_memory, cpus=self.lab_cpus, accel=self.accel)


def add(parser: pytest.Parser) -> None:
    """Declare the options; ``fxh run`` has the same."""
    group = parser.getgroup("freebsd-xen", "FreeBSD under Xen (freebsd-xen-harness)")
    group.addoption(
        "--guest", default="", help="guests to test, by commas: control, freebsd (default: control, or freebsd with --kernel)"
    )
    group.addoption(
        "--type",
        dest="guest_type",
        default="",
        help="guest types, by commas: pv, pvh, hvm (default: all that guest and host can)",
    )
    group.addoption("--xen", default="", help=f"Xen versions of the lab, by commas: {', '.join(recipe.available_quietly())}")
    group.addoption("--kernel", default="", help="a FreeBSD kernel to boot")
    group.addoption("--disk", default="", help="the disk image with its root file system (raw or qcow2); it is not written to")
    group.addoption("--image", default="", help="a FreeBSD image of the store (fxh image list), instead of --kernel and --disk")
    group.addoption("--bootloader", default="", help="with --image: pygrub, so that dom0 reads the kernel from the disk")
    group.addoption("--root", default="", help="the guest's root device (default: the first disk as a whole)")
    group.addoption("--xen-host", default="", help="a real Xen host: user@host, or local for this machine (default: a lab)")
    group.addoption("--control", default="", help="a control guest of your own: a directory with its vmlinuz and initrd")
    group.addoption("--branch", default="", help="the line of development that is tested, for verdicts (main, stable/14)")
    group.addoption("--scale", type=float, default=1.0, help="stretches every time budget of a guest")
    group.addoption("--hypervisor", default="", help="the lab's hypervisor: a xen.gz of your own")
    group.addoption("--dom0-kernel", default="", help="the lab's dom0 kernel: a vmlinuz of your own")
    group.addoption("--lab-memory", type=int, default=MEMORY, help="MiB of a lab")
    group.addoption("--lab-cpus", type=int, default=1, help="virtual CPUs of a lab")
    group.addoption("--accel", default="auto", choices=("auto", "tcg", "kvm"), help="how QEMU runs a lab")
    group.addoption("--fxh-everywhere", action="store_true", help=argparse.SUPPRESS)
    group.addoption("--fxh-run", default="", help=argparse.SUPPRESS)
    group.addoption("--reports", default="", help="where results go (default: reports/ of the project)")


def read(config: pytest.Config) -> Options:
    """Raises UsageError for what cannot be."""

    def words(name: str) -> tuple[str, ...]:
        return tuple(filter(None, (word.strip() for word in str(config.getoption(name)).split(","))))

    def path(name: str) -> Path | None:
        text = str(config.getoption(name))
        if not text:
            return None
        found = Path(text).expanduser().absolute()
        if not found.is_file():
            raise UsageError(f"--{name.replace('_', '-')} {text}: no such file")
        return found

    kernel, disk = path("kernel"), path("disk")
    if (kernel is None) != (disk is None):
        raise UsageError("--kernel and --disk go together", mend="give the kernel and the image with its root file system")
    image = str(config.getoption("image"))
    if image and kernel:
        raise UsageError(
            "--image brings its kernel and disks", mend="leave --kernel and --disk out, or swap the kernel: fxh image build"
        )
    bootloader = str(config.getoption("bootloader"))
    if bootloader not in ("", "pygrub") or (bootloader and not image):
        raise UsageError(f"--bootloader {bootloader}", mend="--image IMAGE --bootloader pygrub")
    guests = words("guest") or (("freebsd",) if kernel or image else ("control",))
    for guest in guests:
        if guest not in ("control", "freebsd"):
            raise UsageError(f"--guest {guest}", mend="control or freebsd")
    if "freebsd" in guests and kernel is None and not image:
        raise UsageError("--guest freebsd needs a FreeBSD", mend="add --image IMAGE, or --kernel KERNEL --disk DISK")
    types = words("guest_type")
    for guest_type in types:
        if guest_type not in ("pv", "pvh", "hvm"):
            raise UsageError(f"--type {guest_type}", mend="pv, pvh or hvm")
    xens = words("xen") or (recipe.DEFAULT_XEN,)
    if not config.getoption("xen_host"):
        for xen in xens:
            if words("xen") and xen not in recipe.available():
                raise UsageError(f"--xen {xen}: no lab recipe", mend=f"there are: {', '.join(recipe.available())}")
    control = Path(str(config.getoption("control"))).absolute() if config.getoption("control") else None
    for name in ("vmlinuz", "initrd") if control else ():
        if control is not None and not (control / name).is_file():
            raise UsageError(f"--control {control}: no {name} in it", mend="give a directory with vmlinuz and initrd")
    scale = float(config.getoption("scale"))
    if scale <= 0:
        raise UsageError(f"--scale {scale}", mend="a number above 0")
    return Options(
        guests=guests,
        types=types,
        xens=xens,
        kernel=kernel,
        disk=disk,
        image=image,
        bootloader=bootloader,
        root=str(config.getoption("root")),
        host=str(config.getoption("xen_host")),
        scale=scale,
        hypervisor=path("hypervisor"),
        dom0_kernel=path("dom0_kernel"),
        lab_memory=int(config.getoption("lab_memory")),
        lab_cpus=int(config.getoption("lab_cpus")),
        accel=str(config.getoption("accel")),
        control=control,
        branch=str(config.getoption("branch")),
    )


def reports(config: pytest.Config) -> Path:
    """Where runs and the page of the latest are kept."""
    given = str(config.getoption("reports"))
    return Path(given).absolute() if given else paths.project() / "reports"
