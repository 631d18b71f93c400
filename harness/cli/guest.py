# SPDX-License-Identifier: BSD-2-Clause
"""fxh boot and fxh console: boot a guest by hand, and attach to a console."""

from __future__ import annotations

import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from harness.cli.run_options import option
from harness.config.runoptions import GUEST_TYPES
from harness.errors import GuestDied, UsageError

if TYPE_CHECKING:
    from harness.console.reader import ConsoleReader
    from harness.hosts.direct import DirectHost


_ONE_HOST = "Use this Xen host: a name of fxh.toml, user@host, local (default: a lab)."
_ONE_TYPE = "Boot this guest type: pv, pvh, hvm, pvshim for PV in the PV shim (default: the first that the guest supports)."


def register(app: typer.Typer) -> None:
    app.command()(boot)
    app.command()(console)


def _host(
    xen: str, xen_host: str, lab_name: str, memory: int = 0, accel: str = "auto", hypervisor: Path | None = None
) -> DirectHost:
    from harness.hosts import connect
    from harness.lab import factory, recipe

    if xen_host:
        return connect.direct(xen_host)
    from harness.lab.host import LabHost
    from harness.lab.lab import Lab

    if lab_name:
        from harness.lab import qemu

        return LabHost(Lab.attach(lab_name, qemu.find()))
    lab = factory.make(factory.LabSpec(xen or recipe.DEFAULT_XEN, hypervisor, memory=memory or factory.MEMORY, accel=accel))
    lab.up()
    return LabHost(lab)


def boot(
    kernel: Annotated[Path | None, option("kernel")] = None,
    disk: Annotated[Path | None, option("disk")] = None,
    image: Annotated[str, option("image")] = "",
    bootloader: Annotated[str, option("bootloader")] = "",
    root: Annotated[str, option("root")] = "",
    guest_type: Annotated[str, option("type", _ONE_TYPE)] = "",
    pvshim: Annotated[bool, option("pvshim", "Boot PV in the PV shim; the same as --type pvshim.")] = False,
    firmware: Annotated[str, option("firmware", "Start an HVM guest with this firmware: bios, uefi (default: bios).")] = "",
    guest_memory: Annotated[
        int, typer.Option("--memory", min=0, help="Give the guest this many MiB of memory (default: 512).", show_default=False)
    ] = 0,
    vcpus: Annotated[int, typer.Option("--vcpus", min=1, help="Give the guest this many virtual CPUs.")] = 1,
    var: Annotated[list[str] | None, typer.Option("--var", help="Set a kernel variable, NAME=VALUE; may be repeated.")] = None,
    xen: Annotated[str, option("xen", "Use a lab with this Xen version (default: 4.20).")] = "",
    xen_host: Annotated[str, option("xen_host", _ONE_HOST)] = "",
    hypervisor: Annotated[Path | None, option("hypervisor")] = None,
    lab: Annotated[str, typer.Option("--lab", help="Use this running lab (default: start one).")] = "",
    lab_memory: Annotated[int, option("lab_memory")] = 0,
    accel: Annotated[str, option("accel")] = "auto",
) -> None:
    """Boot a guest and attach to its console: the control guest, or FreeBSD from --image or --disk.

    Without a terminal the command ends at the login prompt, or with exit code 1 if the guest dies.
    """
    from harness.guests.domain_config import build_domain_config
    from harness.guests.guest import Guest
    from harness.guests.os.freebsd_source import from_files, from_image
    from harness.guests.os.linux import from_directory
    from harness.guests.shape import Shape
    from harness.lab import factory, recipe
    from harness.xen import firmware as firmwares

    if kernel is not None and disk is None and not image:
        raise UsageError("--kernel without --disk", hint="add --disk FILE, the image with the root file system")
    if firmware:
        firmwares.check(firmware)
    if guest_type and guest_type not in GUEST_TYPES:
        raise UsageError(f"--type {guest_type}: more than one type", hint=f"use one of {', '.join(GUEST_TYPES)}")
    variables = []
    for word in var or []:
        name, equals, value = word.partition("=")
        if not equals:
            raise UsageError(f"--var {word}: no value", hint="use --var NAME=VALUE")
        variables.append((name, value))
    if image:
        from harness.images import image as images

        if kernel is not None or disk is not None:
            raise UsageError(
                "--image with --kernel or --disk: an image has its own kernel and disks",
                hint="replace the image's kernel: fxh image build --kernel KERNEL --base IMAGE",
            )
        guest_source = from_image(images.find(image), bootloader=bootloader, root=root)
    elif bootloader:
        raise UsageError(f"--bootloader {bootloader} without --image", hint="add --image IMAGE")
    elif kernel is not None and disk is not None:
        guest_source = from_files(kernel, disk, root=root)
    elif disk is not None:
        from harness.images import diskimage

        read = diskimage.read_image(disk, root)
        diskimage.print_summary(read)
        diskimage.check_types(read, [guest_type] if guest_type else [])
        guest_source = from_image(read)
    else:
        guest_source = from_directory(factory.control(factory.LabSpec(xen or recipe.DEFAULT_XEN)))
    shape = Shape(
        "pvshim" if pvshim else guest_type or ("hvm" if firmware else guest_source.os.types[0]), guest_memory, vcpus=vcpus, variables=tuple(variables), on_poweroff="destroy",
        on_reboot="restart", firmware=firmware,
    )  # fmt: skip
    host = _host(xen, xen_host, lab, lab_memory, accel, hypervisor)
    with tempfile.TemporaryDirectory(prefix="fxh-boot-") as scratch:
        try:
            facts = host.facts
            print(f"host: Xen {facts.xen}, {facts.dom0}{', ' if facts.note else ''}{facts.note}", file=sys.stderr)
            guest = Guest(
                host,
                guest_source.os,
                build_domain_config(host, guest_source, shape, host.domain_name(guest_source.label)),
                Path(scratch),
                symbols=guest_source.kernel_symbols,
            )
            try:
                guest.create()
                guest.start()
                _hand_over(guest.console, guest.unpaused)
            finally:
                guest.destroy()
                for used in guest.config.disks:
                    host.drop_disk(used.target)
        finally:
            host.close()


def _hand_over(reader: ConsoleReader, unpaused: float) -> None:
    """Attach the terminal until Ctrl-]; without a terminal print the console until login or death."""
    from harness.console.terminal import ReaderStream, attach
    from harness.console.text import decode
    from harness.safetext import plain

    if sys.stdin.isatty() and sys.stdout.isatty():
        attach(ReaderStream(reader))
        return
    position = 0
    while True:
        data = reader.since(position)
        position += len(data)
        print(plain(decode(data)), end="", flush=True)
        if reader.death is not None:
            print(f"\nfxh: {reader.death.summary}", file=sys.stderr)
            for question, answer in reader.death.answers:
                print(f"--- {question}\n{plain(answer)}", file=sys.stderr)
            raise GuestDied(reader.death)
        if reader.stage == "login":
            break
        time.sleep(0.1)
    print("", flush=True)
    for reached in reader.stages:
        print(f"  {reached.name:<10} {reached.at - unpaused:6.1f} s", file=sys.stderr)


def console(
    domain: Annotated[str, typer.Argument(help="Domain name or domid.")],
    lab: Annotated[str, typer.Option("--lab", help="Use a domain of this lab.")] = "default",
    xen_host: Annotated[str, option("xen_host", _ONE_HOST)] = "",
    serial: Annotated[bool, typer.Option("--serial", help="Attach to the serial port of an HVM guest.")] = False,
) -> None:
    """Attach to the console of a domain. Ctrl-] detaches; the domain continues to run."""
    from harness.console.terminal import attach

    host = _host("", xen_host, "" if xen_host else lab)
    try:
        if host.toolstack.find(int(domain) if domain.isdigit() else domain) is None:
            names = ", ".join(row.name for row in host.toolstack.domains())
            raise UsageError(f"no domain {domain} on {host.facts.name}", hint=f"running domains: {names}")
        attach(host.toolstack.console(domain, kind="serial" if serial else "pv"))
    finally:
        host.close()
