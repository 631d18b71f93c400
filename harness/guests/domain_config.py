# SPDX-License-Identifier: BSD-2-Clause
"""The domain configuration for a source in a shape on a host."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from harness.errors import UsageError
from harness.guests import keptdump, preflight
from harness.guests.shape import Shape
from harness.guests.source import GuestSource
from harness.hosts.host import XenHost
from harness.xen.config import Disk, DomainConfig, Vif, entry
from harness.xen.firmware import UEFI

# MiB for a guest in the PV shim. Measured with Xen 4.17 and a Linux of 60 MiB. With 288 the shim stops with "Not enough RAM for
# domain 0 allocation"; with 512 the guest boots.
_SHIM = 512

_More = tuple[tuple[str, str | int | tuple[str, ...]], ...]


def build_domain_config(host: XenHost, source: GuestSource, shape: Shape, name: str) -> DomainConfig:
    """The domain configuration for ``source`` on ``host``.

    Copies the files of the source to the host. Raises UsageError if no host can run it, CannotRun if this host cannot.
    """
    preflight.check(host, source, shape)
    if shape.dump_device:
        source, shape = keptdump.equip(source, shape)
    root = source.root
    if shape.root_vdev and source.disks:
        called, first = source.os.disk_name, source.disks[0]
        root = root.replace(called(first.vdev), called(shape.root_vdev), 1)
        source = replace(source, disks=(replace(first, vdev=shape.root_vdev), *source.disks[1:]))
    spared = host.facts.emulated and shape.spared
    # Each access of an emulated serial port wakes QEMU in dom0, which takes a millisecond. A loader that reads its variables from a pool
    # reads loader.conf later, and then uses the serial port again.
    quick = spared and shape.type == "hvm" and not source.root.startswith("zfs:")
    pv_console = source.os.pv_console if quick else {}
    variables = {**source.os.default_variables(root, spared), **pv_console, **dict(shape.variables)}
    if entry(shape.type) == "pv" and source.bits == 32 and host.facts.emulated:
        variables = {"hw.use_xsave": "0", **variables}
    given = {key: value for key, value in variables.items() if value is not None}
    disks = source.disks_with(given) if shape.type == "hvm" else source.disks
    if shape.type == "hvm" and shape.variables and disks == source.disks:
        raise UsageError(
            f"{source.label}: as HVM it takes its kernel variables from its own loader.conf, and this disk has no place for ours",
            hint="choose an image built by `fxh image build`, or another guest type",
        )
    # Under emulation the firmware takes a minute to start from the network card, which FreeBSD unplugs later.
    nic = "vif" if shape.type == "hvm" and host.facts.emulated and not shape.emulated_nic else ""
    more, kernel = _kernel_fields(host, source, shape, given)
    # QEMU's emulated CPU does not report an invariant TSC, so Xen would trap each read of it (docs/lab.md, The cost of a
    # boot under emulation).
    tsc = (("tsc_mode", "native"),) if spared else ()
    # Without its ROM the card starts no guest, and dom0 does not need the package that has the ROM.
    no_rom: _More = (("device_model_args_hvm", ("-global", f"{shape.emulated_nic}.romfile=")),) if shape.emulated_nic else ()
    return DomainConfig(
        name=name,
        type="pvh" if shape.type == "pvshim" else shape.type,
        pvshim=shape.type == "pvshim",
        memory=shape.memory or max(source.memory, _SHIM if shape.type == "pvshim" else 0),
        maxmem=shape.maxmem,
        vcpus=shape.vcpus,
        maxvcpus=shape.maxvcpus,
        pv_console=bool(pv_console) and disks != source.disks,
        **kernel,
        more=(*more, *tsc, *no_rom),
        disks=(*(Disk(host.disk(d.path, d.format), d.vdev, readonly=d.readonly) for d in disks), *shape.disks),
        vifs=tuple(Vif(host.bridge, host.mac(name, n), model=shape.emulated_nic, type=nic) for n in range(shape.vifs)),
        on_poweroff=shape.on_poweroff,
        on_reboot=shape.on_reboot,
        on_crash=shape.on_crash,
    )


def _kernel_fields(host: XenHost, source: GuestSource, shape: Shape, variables: dict[str, str]) -> tuple[_More, dict[str, Any]]:
    """The part of the configuration that starts the kernel: by firmware and loader, by a bootloader in dom0, or directly.

    Returns further xl.cfg keys, and fields of :class:`DomainConfig`.
    """
    if shape.type == "hvm":
        # The kernel's variables are in its loader's configuration. A VNC server is useless here. Under emulation an access to an I/O
        # port takes milliseconds, so let the BIOS read disks by DMA, and leave the screen out.
        quick = (("hdtype", "ahci"), ("vga", "none")) if host.facts.emulated else ()
        uefi = shape.firmware == UEFI
        ovmf = host.own_ovmf if uefi else None
        override = (("bios_path_override", host.files(ovmf)[0]),) if ovmf else ()
        return (("vnc", 0), *quick, *override), {"serial": True, "boot": "c", "firmware": "ovmf" if uefi else ""}
    if bootloader := shape.bootloader or source.bootloader:
        own = dict(source.own_variables)
        words = source.os.command_line({key: value for key, value in variables.items() if own.get(key) != value})
        # The bootloader puts a blank between its own words and these.
        extra = source.os.appended(words) if own or shape.bootloader else words
        # It reads a disk that a guest wrote, so run it without root privileges if the host can.
        restrict = (("bootloader_restrict", 1),) if "pygrub-restrict" in host.capabilities else ()
        return restrict, {"bootloader": bootloader, "extra": extra}
    loaded = zip(("kernel", "ramdisk"), source.loaded(host.facts.emulated), strict=True)
    given = {name: path for name, path in loaded if path is not None}
    # A 32-bit PV FreeBSD reads MSRs to which Xen would otherwise answer with a fault.

    relaxed = (("msr_relaxed", 1),) if shape.type == "pv" and source.bits == 32 else ()
    files = dict(zip(given, host.files(*given.values()), strict=True))
    return relaxed, {**files, "extra": source.os.command_line(variables)}
