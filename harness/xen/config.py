# SPDX-License-Identifier: BSD-2-Clause
"""Renders domain configurations as xl.cfg(5) text."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field

from harness.errors import UsageError
from harness.xen import vdev

TYPES = ("pv", "pvh", "hvm")
FORMATS = ("raw", "qcow", "qcow2", "vhd", "qed", "empty")
BACKENDS = ("", "phy", "qdisk", "tap", "standalone")
ACTIONS = (
    "destroy", "restart", "rename-restart", "preserve", "coredump-destroy", "coredump-restart", "soft-reset",
)  # fmt: skip


def entry(guest_type: str) -> str:
    """The mode in which the guest's kernel starts. ``pvshim`` is a PV guest: its domain is PVH, but runs the PV shim's Xen."""
    return "pv" if guest_type == "pvshim" else guest_type


@dataclass(frozen=True)
class Disk:
    """A disk. ``target`` is a path in dom0 (block device or file), ``vdev`` as in xl-disk-configuration(5): xvda, hda, 51712.

    A drive without a medium has no target, and the format ``empty``.
    """

    target: str
    vdev: str = "xvda"
    format: str = "raw"
    readonly: bool = False
    cdrom: bool = False
    backend: str = ""
    """``phy`` or ``qdisk``; if empty, libxl chooses."""

    def render(self) -> str:
        """The argument of ``xl block-attach``, or an item of the ``disk`` list (xen tools/libs/util/libxlu_disk_l.l).

        Raises UsageError for values that this syntax cannot express. It can express a comma in the path of an emulated disk, but
        QEMU misreads it, because libxl passes the path to ``-drive`` unescaped.
        """
        vdev.number(self.vdev)
        for name, value, known in (("format", self.format, FORMATS), ("backend", self.backend, BACKENDS)):
            if value not in known:
                raise UsageError(f"disk {name} {value!r}", hint=f"one of {', '.join(filter(None, known))}")
        if not self.target and not self.cdrom:
            raise UsageError(f"disk {self.vdev} has no target", hint="a path in dom0; only a CD-ROM drive can be empty")
        if "\n" in self.target or "\0" in self.target:
            raise UsageError(f"disk target {self.target!r}: xl's target= ends at a line end or a NUL", hint="rename the file")
        words = [f"format={self.format}", f"vdev={self.vdev}", f"access={'ro' if self.readonly or self.cdrom else 'rw'}"]
        if self.cdrom:
            words.append("devtype=cdrom")
        if self.backend:
            words.append(f"backendtype={self.backend}")
        if self.target:
            # target= takes the rest of the text without a comma at its end.
            words.append(f"target={self.target}" + ("," if self.target.endswith(",") else ""))
        return ",".join(words)


@dataclass(frozen=True)
class Vif:
    """A network interface on ``bridge``. If ``mac`` is empty, libxl chooses it. If ``model`` is empty, the interface is PV only."""

    bridge: str
    mac: str = ""
    model: str = ""
    script: str = ""
    type: str = ""
    """HVM: ``vif`` for the PV interface only. By default libxl adds an emulated one."""

    def render(self) -> str:
        """The arguments of ``xl network-attach``, or an item of the ``vif`` list. Raises UsageError."""
        if self.mac and not re.fullmatch(r"(?:[0-9a-f]{2}:){5}[0-9a-f]{2}", self.mac):
            raise UsageError(f"vif mac {self.mac!r}", hint="six pairs of lower-case hex digits, for example 00:16:3e:01:02:03")
        words = {"bridge": self.bridge, "mac": self.mac, "model": self.model, "script": self.script, "type": self.type}
        for key, value in words.items():
            if "," in value:
                raise UsageError(f"vif {key} {value!r}: xl's syntax cannot express a comma", hint="choose a name without a comma")
        return ",".join(f"{key}={value}" for key, value in words.items() if value)


@dataclass(frozen=True)
class DomainConfig:
    """One guest domain. Memory is in MiB. ``more`` has further xl.cfg keys with str, int, bool or list-of-str values."""

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
    maxvcpus: int = 0
    disks: tuple[Disk, ...] = ()
    vifs: tuple[Vif, ...] = ()
    serial: bool = False
    """HVM: add a serial port, which ``xl console -t serial`` shows."""
    pv_console: bool = False
    """HVM with a serial port: only firmware and loader use it. The kernel was told to use the PV console."""
    boot: str = ""
    firmware: str = ""
    """HVM: ``ovmf`` for UEFI. If empty, libxl uses SeaBIOS (xl.cfg(5))."""
    pvshim: bool = False
    on_poweroff: str = "destroy"
    on_reboot: str = "restart"
    on_crash: str = "preserve"
    more: tuple[tuple[str, str | int | tuple[str, ...]], ...] = field(default=())

    @property
    def serial_console(self) -> bool:
        """Whether the guest's shell is at its serial port."""
        return self.serial and not self.pv_console

    @property
    def guest_type(self) -> str:
        """The guest type that the guest detects. In the PV shim it detects pv, although its domain is PVH."""
        return "pv" if self.pvshim else self.type

    def render(self) -> str:
        """The xl.cfg text. Raises UsageError for values that xl refuses or misreads."""
        if self.type not in TYPES:
            raise UsageError(f"guest type {self.type!r}", hint=f"one of {', '.join(TYPES)}")
        for key, action in (("on_poweroff", self.on_poweroff), ("on_reboot", self.on_reboot), ("on_crash", self.on_crash)):
            if action not in ACTIONS:
                raise UsageError(f"{key} {action!r}", hint=f"one of {', '.join(ACTIONS)}")
        if self.pvshim and self.type != "pvh":
            raise UsageError(f"pvshim with type {self.type!r}", hint="the PV shim needs a PVH domain: use type pvh")
        if self.firmware and self.type != "hvm":
            raise UsageError(
                f"firmware {self.firmware!r} with type {self.type!r}", hint="use type hvm; only HVM guests have a firmware"
            )
        lines: list[tuple[str, str | int | Sequence[str]]] = [
            ("name", self.name),
            ("type", self.type),
            ("memory", self.memory),
        ]
        optional: list[tuple[str, str | int | Sequence[str]]] = [
            ("maxmem", self.maxmem),
            ("maxvcpus", self.maxvcpus),
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
    if not re.fullmatch(r"[a-z][._0-9a-z]*", key):
        raise UsageError(
            f"invalid xl.cfg key {key!r}", hint="use a lower-case letter, then lower-case letters, digits, dots and underscores"
        )
    if isinstance(value, int):
        if not -(1 << 63) <= value < 1 << 63:
            raise UsageError(f"{key} {value}: xl's numbers have 64 bits")
        # xl's syntax has no sign, but xl reads a negative number from a string.
        return str(int(value)) if value >= 0 else f'"{value}"'
    if isinstance(value, str):
        return _string(key, value)
    return "[" + ", ".join(_string(key, item) for item in value) + "]"


# A string ends at its quote or at a line end. Numeric escapes do not work: xlu__cfgl_dequote() reads the number and drops it.
_ESCAPES = {"\\": r"\\", "\n": r"\n", "\r": r"\r", "\t": r"\t", "\v": r"\v", "\f": r"\f", "\a": r"\a", "\b": r"\b"}


def _string(key: str, text: str) -> str:
    """``text`` quoted for xl.cfg (xen tools/libs/util/libxlu_cfg_l.l and libxlu_cfg.c).

    Characters without an escape are written literally, including control characters. Raises UsageError for a NUL, which ends
    xl's strings. Also raises it for text that is not UTF-8, which libxl cannot read back from its own record of the domain.
    """
    if "\0" in text:
        raise UsageError(f"{key} contains a NUL, which ends xl's strings: {text!r}")
    if re.search("[\ud800-\udfff]", text):
        raise UsageError(f"{key} is not UTF-8: {text!r}")
    if key == "name" and any(ord(character) < 32 or ord(character) == 127 for character in text):
        raise UsageError(f"the domain name contains a control character, which breaks the rows of `xl list`: {text!r}")
    quote = "'" if '"' in text and "'" not in text else '"'
    written = "".join(_ESCAPES.get(character, character) for character in text)
    return quote + written.replace(quote, "\\" + quote) + quote
