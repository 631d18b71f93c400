# SPDX-License-Identifier: BSD-2-Clause
"""fxh boot and fxh console: a guest by hand."""

from __future__ import annotations

import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from harness.cli import completion
from harness.errors import GuestDied, UsageError

if TYPE_CHECKING:
    from harness.console.reader import ConsoleReader
    from harness.hosts.host import DirectHost


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
    kernel: Annotated[Path | None, typer.Option("--kernel", help="A FreeBSD kernel, instead of the disk's own.")] = None,
    disk: Annotated[
        Path | None, typer.Option("--disk", help="A FreeBSD disk image: raw or qcow2, perhaps in .xz; it is only read.")
    ] = None,
    image: Annotated[
        str,
        typer.Option("--image", help="An image of the store, or an exported one's directory.", autocompletion=completion.images),
    ] = "",
    bootloader: Annotated[
        str,
        typer.Option(
            "--bootloader", help="pygrub: dom0 reads the kernel from the image's disk.", autocompletion=completion.one_of("pygrub")
        ),
    ] = "",
    root: Annotated[
        str, typer.Option("--root", help="The root device: xbd0p2, gpt/rootfs, zfs:POOL/DATASET (default: what the disk says).")
    ] = "",
    guest_type: Annotated[
        str,
        typer.Option(
            "--type",
            help="pv, pvh or hvm; pvshim: pv in the PV shim.",
            autocompletion=completion.one_of("pv", "pvh", "hvm", "pvshim"),
        ),
    ] = "",
    pvshim: Annotated[bool, typer.Option("--pvshim", help="The same as --type pvshim.")] = False,
    firmware: Annotated[
        str, typer.Option("--firmware", help="Of an HVM guest: bios or uefi.", autocompletion=completion.one_of("bios", "uefi"))
    ] = "",
    guest_memory: Annotated[int, typer.Option("--memory", help="MiB of the guest.")] = 0,
    vcpus: Annotated[int, typer.Option("--vcpus", help="The guest's virtual CPUs.")] = 1,
    var: Annotated[list[str] | None, typer.Option("--var", help="A kernel variable, NAME=VALUE; may be repeated.")] = None,
    xen: Annotated[str, typer.Option("--xen", help="Xen version of the lab.", autocompletion=completion.xens)] = "",
    xen_host: Annotated[
        str, typer.Option("--xen-host", help="A real host instead: user@host, or local.", autocompletion=completion.hosts)
    ] = "",
    hypervisor: Annotated[Path | None, typer.Option("--hypervisor", help="The lab's hypervisor, of your own.")] = None,
    lab: Annotated[str, typer.Option("--lab", help="A lab that is up already.")] = "",
    lab_memory: Annotated[int, typer.Option("--lab-memory", help="MiB of the lab.")] = 0,
    accel: Annotated[
        str, typer.Option("--accel", help="auto, tcg or kvm.", autocompletion=completion.one_of("auto", "tcg", "kvm"))
    ] = "auto",
) -> None:
    """Boot a guest and hand over its console: the control guest, or a FreeBSD by --image or --disk.

    Without a terminal it ends at the login prompt, or with exit code 1 when the guest dies.
    """
    from harness.guests.configure import configure
    from harness.guests.guest import Guest
    from harness.guests.os.freebsd_source import from_files, from_image
    from harness.guests.os.linux import from_directory
    from harness.guests.shape import Shape
    from harness.lab import factory, recipe
    from harness.xen import firmware as firmwares

    if kernel is not None and disk is None and not image:
        raise UsageError("--kernel without a disk", hint="add --disk FILE, the image with the root file system")
    if firmware:
        firmwares.check(firmware)
    variables = []
    for word in var or []:
        name, equals, value = word.partition("=")
        if not equals:
            raise UsageError(f"--var {word!r}", hint="NAME=VALUE")
        variables.append((name, value))
    if image:
        from harness.images import image as images

        if kernel is not None or disk is not None:
            raise UsageError(
                "--image brings its kernel and disks", hint="swap its kernel: fxh image build --kernel KERNEL --base IMAGE"
            )
        what = from_image(images.find(image), bootloader=bootloader, root=root)
    elif bootloader:
        raise UsageError("--bootloader goes with --image")
    elif kernel is not None and disk is not None:
        what = from_files(kernel, disk, root=root)
    elif disk is not None:
        from harness.images import diskread

        read = diskread.take(disk, root)
        diskread.tell(read)
        diskread.check_types(read, [guest_type] if guest_type else [])
        what = from_image(read)
    else:
        what = from_directory(factory.control(factory.LabSpec(xen or recipe.DEFAULT_XEN)))
    shape = Shape(
        "pvshim" if pvshim else guest_type or ("hvm" if firmware else what.profile.types[0]), guest_memory, vcpus=vcpus, variables=tuple(variables), on_poweroff="destroy",
        on_reboot="restart", firmware=firmware,
    )  # fmt: skip
    host = _host(xen, xen_host, lab, lab_memory, accel, hypervisor)
    with tempfile.TemporaryDirectory(prefix="fxh-boot-") as scratch:
        try:
            facts = host.facts
            print(f"host: Xen {facts.xen}, {facts.dom0}{', ' if facts.note else ''}{facts.note}", file=sys.stderr)
            guest = Guest(
                host, what.profile, configure(host, what, shape, host.domain_name(what.label)), Path(scratch), kernel=what.kernel
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
    """Show the console: to a person until Ctrl-], else until login or death."""
    from harness.cli.terminal import attach
    from harness.console.text import decode, plain

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


class ReaderStream:
    """A console's log as a stream for the terminal: the reader goes on reading, logging and watching."""

    def __init__(self, reader: ConsoleReader) -> None:
        self._reader, self._position = reader, 0

    def read(self, size: int, timeout: float | None = None) -> bytes:
        end = time.monotonic() + (timeout or 0)
        while True:
            data = self._reader.since(self._position, size)
            if data:
                self._position += len(data)
                return data
            if self._reader.closed:
                return b""
            if time.monotonic() >= end:
                raise TimeoutError
            time.sleep(0.01)

    def write(self, data: bytes) -> None:
        self._reader.write(data)

    def close(self) -> None:
        """The reader goes on."""


def console(
    domain: Annotated[str, typer.Argument(help="Name or domid.")],
    lab: Annotated[str, typer.Option("--lab", help="The lab it runs in.")] = "default",
    xen_host: Annotated[
        str, typer.Option("--xen-host", help="A real host instead: user@host, or local.", autocompletion=completion.hosts)
    ] = "",
    serial: Annotated[bool, typer.Option("--serial", help="The serial port of an HVM guest.")] = False,
) -> None:
    """Attach to the console of a domain. Ctrl-] ends it; the domain lives on."""
    from harness.cli.terminal import attach

    host = _host("", xen_host, "" if xen_host else lab)
    try:
        if host.toolstack.find(int(domain) if domain.isdigit() else domain) is None:
            names = ", ".join(row.name for row in host.toolstack.domains())
            raise UsageError(f"no domain {domain} on {host.facts.name}", hint=f"there are: {names}")
        attach(host.toolstack.console(domain, serial=serial))
    finally:
        host.close()
