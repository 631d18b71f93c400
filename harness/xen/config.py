"""Domain configuration: values in, an xl.cfg(5) text out."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field

from harness.errors import UsageError

TYPES = ("pv", "pvh", "hvm")
ACTIONS = (
    "destroy", "restart", "rename-restart", "preserve", "coredump-destroy", "coredump-restart", "soft-reset",
)  # fmt: skip


def entry(guest_type: str) -> str:
    """As what a kernel is entered: ``pvshim`` is a PV guest on a Xen of its own, the PV shim, in a PVH domain."""
    return "pv" if guest_type == "pvshim" else guest_type


@dataclass(frozen=True)
class Disk:
    """``target`` is a path in dom0 (block device or file), ``vdev`` as in xl-disk-configuration(5): xvda, hda, 51712.

    A drive without a medium has no target, and the format ``empty``.
    """

    target: str
    vdev: str = "xvda"
    format: str = "raw"
    readonly: bool = False
    cdrom: bool = False
    backend: str = ""
    """``phy``, ``qdisk`` or empty for libxl's choice."""

    def render(self) -> str:
        """As ``xl block-attach`` and the ``disk`` list take it."""
        if "," in self.target or "=" in self.target.split("/")[0]:
            raise UsageError(f"disk target {self.target!r}: xl's disk syntax has no way to write a comma", mend="rename it")
        words = [f"format={self.format}", f"vdev={self.vdev}", f"access={'ro' if self.readonly or self.cdrom else 'rw'}"]
        if self.cdrom:
            words.append("devtype=cdrom")
        if self.backend:
            words.append(f"backendtype={self.backend}")
        # target= takes the rest of the line.
        return ",".join([*words, f"target={self.target}"] if self.target else words)


@dataclass(frozen=True)
class Vif:
    """A network interface on the bridge ``bridge``; ``mac`` empty for libxl's choice; ``model`` empty for PV alone."""

    bridge: str
    mac: str = ""
    model: str = ""
    script: str = ""
    type: str = ""
    """HVM: ``vif`` for the PV interface alone; libxl's choice is an emulated one beside it."""

    def render(self) -> str:
        """As ``xl network-attach`` and the ``vif`` list take it."""
        if self.mac and not re.fullmatch(r"(?:[0-9a-f]{2}:){5}[0-9a-f]{2}", self.mac):
            raise UsageError(f"vif mac {self.mac!r}", mend="six pairs of lower-case hex digits, for example 00:16:3e:01:02:03")
        words = {"bridge": self.bridge, "mac": self.mac, "model": self.model, "script": self.script, "type": self.type}
        return ",".join(f"{key}={value}" for key, value in words.items() if value)


@dataclass(frozen=True)
class DomainConfig:
    """One guest domain. Memory in MiB. ``more`` holds further xl.cfg keys with str, int or list-of-str values."""

    name: str
    type: str
    memory: int
    kernel: str = ""
    ramdisk: str = ""
    extra: str = ""
    bootloader: str = ""
    bootloader_args: tuple[str, ...] = ()
    maxmem: int = 0
    vcpus: int = 1
    disks: tuple[Disk, ...] = ()
    vifs: tuple[Vif, ...] = ()
    serial: bool = False
    """HVM: a serial port that ``xl console -t serial`` shows."""
    boot: str = ""
    firmware: str = ""
    """HVM: ``ovmf`` for UEFI; empty for libxl's choice, SeaBIOS (xl.cfg(5))."""
    pvshim: bool = False
    on_poweroff: str = "destroy"
    on_reboot: str = "restart"
    on_crash: str = "preserve"
    more: tuple[tuple[str, str | int | tuple[str, ...]], ...] = field(default=())

    @property
    def guest_type(self) -> str:
        """What the guest takes itself for: pv within the PV shim, whose domain is a PVH one."""
        return "pv" if self.pvshim else self.type

    def render(self) -> str:
        """The xl.cfg text. Raises UsageError for what xl would refuse or misread."""
        if self.type not in TYPES:
            raise UsageError(f"guest type {self.type!r}", mend=f"one of {', '.join(TYPES)}")
        for key, action in (("on_poweroff", self.on_poweroff), ("on_reboot", self.on_reboot), ("on_crash", self.on_crash)):
            if action not in ACTIONS:
                raise UsageError(f"{key} {action!r}", mend=f"one of {', '.join(ACTIONS)}")
        if self.pvshim and self.type != "pvh":
            raise UsageError(f"pvshim with type {self.type!r}", mend="the shim turns a PVH domain into a PV one: type pvh")
        if self.firmware and self.type != "hvm":
            raise UsageError(f"firmware {self.firmware!r} with type {self.type!r}", mend="only HVM guests start from a firmware")
        lines: list[tuple[str, str | int | Sequence[str]]] = [
            ("name", self.name),
            ("type", self.type),
            ("memory", self.memory),
        ]
        optional: list[tuple[str, str | int | Sequence[str]]] = [
            ("maxmem", self.maxmem),
            ("kernel", self.kernel),
            ("ramdisk", self.ramdisk),
            ("extra", self.extra),
            ("bootloader", self.bootloader),
            ("bootloader_args", self.bootloader_args),
            ("serial", "pty" if self.serial else ""),
            ("boot", self.boot),
            ("firmware", self.firmware),
            ("pvshim", int(self.pvshim)),
            ("disk", tuple(disk.render() for disk in self.disks)),
            ("vif", tuple(vif.render() for vif in self.vifs)),
        ]
        lines += [(key, value) for key, value in optional if value]
        lines += [("vcpus", self.vcpus), ("on_poweroff", self.on_poweroff)]
        lines += [("on_reboot", self.on_reboot), ("on_crash", self.on_crash), *self.more]
        return "".join(f"{key} = {_value(key, value)}\n" for key, value in lines)


def _value(key: str, value: str | int | Sequence[str]) -> str:
    if isinstance(value, int):
        return str(value)
    if isinstance(value, str):
        return _string(key, value)
    return "[" + ", ".join(_string(key, item) for item in value) + "]"


def _string(key: str, text: str) -> str:
    """xl's strings end at their quote or at a line end and know backslash escapes (xen tools/libs/util/libxlu_cfg_l.l)."""
    if not text.isprintable():
        raise UsageError(f"{key} has a control character: {text!r}")
    quote = "'" if '"' in text else '"'
    if quote in text:
        raise UsageError(f"{key} has both kinds of quotes, which xl.cfg cannot write: {text!r}")
    return quote + text.replace("\\", "\\\\") + quote
