# SPDX-License-Identifier: BSD-2-Clause
"""Checks, before any file is copied, whether a host can run a guest in a shape. An error has the reason and the remedy."""

from __future__ import annotations

from harness.errors import CannotRun, UsageError
from harness.guests.shape import Shape
from harness.guests.source import NO_ESP_HINT, GuestSource
from harness.hosts.host import XenHost
from harness.xen import firmware
from harness.xen.config import entry
from harness.xen.firmware import UEFI


def check(host: XenHost, source: GuestSource, shape: Shape) -> None:
    """Raises UsageError if no host can run the guest in this shape, CannotRun if this host cannot."""
    types = source.os.types
    if entry(shape.type) not in types:
        raise UsageError(
            f"{source.label} cannot run as {shape.type}: its kernel has no entry for it",
            hint=f"choose one of {', '.join(types)}",
        )
    bootloader = shape.bootloader or source.bootloader
    if shape.type == "hvm" and bootloader:
        raise CannotRun(f"{source.label} as HVM by {bootloader}: an HVM guest's own loader reads its disk", hint="choose PV or PVH")
    if bootloader == "pygrub" and not source.pygrub:
        raise CannotRun(
            f"{source.label} by pygrub: pygrub reads only UFS1 and ext2, and /boot of {source.image or 'this disk'} is on neither",
            hint="choose an image of layout ufs1, mbr, vdevs or ext2boot",
        )
    if shape.firmware == UEFI:
        _uefi(host, source, shape)
    elif shape.type == "hvm" and (why := source.why_no_bios):
        raise CannotRun(why, hint="--firmware uefi")
    old_pv = entry(shape.type) == "pv" and source.bits == 32
    if old_pv and shape.vcpus > 1:
        raise CannotRun(f"{source.label} as 32-bit PV with {shape.vcpus} vCPUs", hint="choose one vCPU: with more it hangs")
    if shape.type == "pvshim":
        _shim(host)
    elif old_pv:
        _pv32(host, source)
    elif shape.type not in host.capabilities:
        raise CannotRun(f"{host.facts.name}: its Xen {host.facts.xen} runs no {shape.type} guests")


def _uefi(host: XenHost, source: GuestSource, shape: Shape) -> None:
    if shape.type != "hvm":
        raise UsageError(f"{source.label} as {shape.type} with UEFI", hint="only HVM guests start from a firmware: --type hvm")
    if why := source.why_no_uefi:
        raise UsageError(why, hint=NO_ESP_HINT)
    if "hvm" in host.capabilities and (why := host.no_uefi):
        raise CannotRun(f"{host.facts.name}: {why}", hint=firmware.HINT)


def _shim(host: XenHost) -> None:
    where = f"{host.facts.name}, Xen {host.facts.xen}"
    if "pvh" not in host.capabilities:
        raise CannotRun(
            f"{where}: it runs no PVH guests, which the PV shim needs",
            hint="enable VT-x or SVM on that host (firmware, or nested virtualisation)",
        )
    if "pvshim" not in host.capabilities:
        raise CannotRun(
            f"{where}: no xen-shim in Xen's directory (Debian: /usr/lib/xen-VERSION/boot)",
            hint="install all of Xen's tools (Debian: xen-utils of that version), or build them with CONFIG_PV_SHIM",
        )


def _pv32(host: XenHost, source: GuestSource) -> None:
    if "pv32" in host.capabilities:
        return
    shim = "; or --pvshim, under which FreeBSD 10.4 panics in xen_load_cr3" if "pvshim" in host.capabilities else ""
    raise CannotRun(
        f"{source.label} is a 32-bit PV kernel, and Xen {host.facts.xen} of {host.facts.name} runs none: "
        "its xen_caps lacks xen-3.0-x86_32p",
        hint=f"use a Xen built with CONFIG_PV32=y (Debian's is not): in a lab --hypervisor xen.gz{shim}",
    )
