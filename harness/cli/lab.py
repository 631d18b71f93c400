# SPDX-License-Identifier: BSD-2-Clause
"""fxh lab: build, start and control labs, Xen hosts inside QEMU."""

from __future__ import annotations

import os
import shutil
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from harness.cli import completion
from harness.config.runoptions import ACCELERATORS
from harness.errors import UsageError

if TYPE_CHECKING:
    from harness.lab.factory import LabSpec
    from harness.lab.lab import Lab

_group = typer.Typer(no_args_is_help=True, help="Manage labs: Xen hosts inside QEMU.")


def register(app: typer.Typer) -> None:
    app.add_typer(_group, name="lab")


Xen = Annotated[
    str,
    typer.Option("--xen", help="Use this Xen version, a recipe of images/dom0 (default: 4.20).", autocompletion=completion.xens),
]
Hypervisor = Annotated[Path | None, typer.Option("--hypervisor", help="Boot this hypervisor, xen.gz or ELF (default: Debian's).")]
Dom0Kernel = Annotated[Path | None, typer.Option("--dom0-kernel", help="Boot dom0 with this kernel, vmlinuz (default: Debian's).")]
Memory = Annotated[
    int,
    typer.Option(
        "--memory", min=0, help="Give the lab this many MiB of memory, 768 of them for dom0 (default: 3072).", show_default=False
    ),
]
Cpus = Annotated[int, typer.Option("--cpus", min=1, help="Give the lab this many virtual CPUs.")]
Accel = Annotated[
    str,
    typer.Option(
        "--accel",
        help="Run QEMU with this accelerator: kvm, tcg, auto for kvm where it works.",
        autocompletion=completion.one_of(*ACCELERATORS),
    ),
]
Binary = Annotated[str, typer.Option("--qemu", help="Run this QEMU binary.")]
Name = Annotated[str, typer.Argument(help="The name of the lab.")]


def _lab_spec(
    xen: str, hypervisor: Path | None, dom0_kernel: Path | None, memory: int = 0, cpus: int = 1, accel: str = "auto",
    binary: str = "qemu-system-x86_64",
) -> LabSpec:  # fmt: skip
    from harness.lab import factory, recipe

    return factory.LabSpec(
        xen or recipe.DEFAULT_XEN,
        hypervisor,
        dom0_kernel,
        memory=memory or factory.MEMORY,
        cpus=cpus,
        accel=accel,
        binary=binary,
    )


def _attach(name: str) -> Lab:
    from harness.lab import qemu
    from harness.lab.lab import Lab

    return Lab.attach(name, qemu.find())


@_group.command()
def build(xen: Xen = "", hypervisor: Hypervisor = None, dom0_kernel: Dom0Kernel = None) -> None:
    """Build a lab from Debian packages, unless the store has it."""
    from harness.lab import factory

    begun = time.monotonic()
    image = factory.image(_lab_spec(xen, hypervisor, dom0_kernel))
    print(f"{image.directory}: Xen {image.manifest['xen']}, {image.size >> 20} MiB, {time.monotonic() - begun:.1f} s")


@_group.command()
def up(
    name: Annotated[str, typer.Argument(help="The name of the lab.")] = "default",
    xen: Xen = "",
    keep: Annotated[
        bool, typer.Option("--keep", help="Return when the lab is up; `fxh lab down` stops it (default: run until Ctrl-C).")
    ] = False,
    hypervisor: Hypervisor = None,
    dom0_kernel: Dom0Kernel = None,
    memory: Memory = 0,
    cpus: Cpus = 1,
    accel: Accel = "auto",
    binary: Binary = "qemu-system-x86_64",
) -> None:
    """Start a lab from its checkpoint "ready". The first start creates this checkpoint."""
    from harness.lab import factory

    begun = time.monotonic()
    lab = factory.make(_lab_spec(xen, hypervisor, dom0_kernel, memory, cpus, accel, binary), name=name, keep=keep)
    with lab:
        lab.up()
        print(f"lab {lab.name} is up after {time.monotonic() - begun:.2f} s: ssh on 127.0.0.1 port {lab.machine.ssh_port}")
        print(f"  {lab.qemu.label}, {lab.accel.why}; restored from {lab.parent}")
        if keep:
            print(f"  fxh lab ssh {lab.name}    fxh lab down {lab.name}")
            return
        print("  Ctrl-C stops it; with --keep it keeps running", flush=True)
        while not lab.dead:
            time.sleep(0.5)
        lab.ssh  # noqa: B018 - raises the reason of the death


@_group.command()
def down(name: Name = "default") -> None:
    """Stop a lab. Its logs stay; changes to dom0's disk are lost unless a checkpoint has them."""
    from harness.lab import control

    control.down(name)


@_group.command("list")
def list_(as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False) -> None:
    """List the labs and checkpoints, and remove labs whose owner was killed."""
    import json

    from harness.lab import control, registry

    for gone in registry.sweep():
        print(f"removed {gone}: it has no owner", file=sys.stderr)
    rows = control.rows()
    if as_json:
        print(json.dumps([row.as_dict() for row in rows], indent=1))
        return
    for row in rows:
        print(row.line())
    if not rows:
        print("no labs; start one with `fxh lab up --keep`")
    for line in control.checkpoints():
        print(line)


@_group.command(context_settings={"allow_extra_args": True, "ignore_unknown_options": True})
def ssh(ctx: typer.Context, name: Name = "default") -> None:
    """Open a shell in dom0 of a lab, or run a command there: fxh lab ssh NAME xl list."""
    from harness.lab import registry

    record = registry.read(name)
    if record is None or registry.state(name) != "up":
        raise UsageError(f"lab {name} is not up", hint="`fxh lab list` shows the labs")
    if not shutil.which("ssh"):
        raise UsageError("no program ssh on this machine", hint="install openssh-client")
    where = registry.directory(name)
    argv = ["ssh", "-i", str(where / "id_ed25519"), "-o", f"UserKnownHostsFile={where / 'known_hosts'}", "-o", "LogLevel=ERROR"]
    argv += ["-o", "IdentitiesOnly=yes", "-o", "StrictHostKeyChecking=yes", "-p", str(record.ssh_port), "root@127.0.0.1"]
    sys.stdout.flush()
    os.execvp("ssh", [*argv, *ctx.args])


@_group.command()
def console(name: Name = "default") -> None:
    """Attach to the console of Xen and dom0, the serial port of the machine. Ctrl-] detaches."""
    from harness.console.terminal import attach_socket
    from harness.lab import registry

    if registry.state(name) != "up":
        raise UsageError(f"lab {name} is not up", hint="`fxh lab list` shows the labs")
    attach_socket(registry.sockets(name) / "com1")


@_group.command()
def logs(name: Name = "default") -> None:
    """Print the logs of a lab: the serial port of Xen and dom0, and the messages of QEMU."""
    from harness.console.text import decode
    from harness.lab import registry
    from harness.safetext import plain

    where = registry.directory(name)
    if not where.is_dir():
        raise UsageError(f"no lab {name}", hint="`fxh lab list` shows the labs")
    for file in ("dead", "qemu.log", "xen.log"):
        if (where / file).is_file():
            print(f"--- {where / file}")
            print(plain(decode((where / file).read_bytes())))


@_group.command()
def rm(name: Name = "default") -> None:
    """Stop a lab and remove all its files."""
    from harness.lab import control

    control.remove(name)


@_group.command()
def prune(
    days: Annotated[float, typer.Option("--days", min=0, help="Remove entries that were not used for this many days.")] = 14,
) -> None:
    """Remove labs, checkpoints, kernels of the control guest and firmware that were not used for --days days."""
    from harness.lab import prune as pruning

    removed = pruning.prune(days)
    for gone in removed:
        print(f"removed {gone.path} ({gone.size >> 20} MiB)")
    print(f"{sum(gone.size for gone in removed) >> 20} MiB freed")


@_group.command()
def checkpoint(
    name: Annotated[str, typer.Argument(help="The name of the lab.")],
    checkpoint: Annotated[str, typer.Argument(help="The name of the new checkpoint.")],
) -> None:
    """Save the state of a lab with all its guests as a checkpoint. The lab continues to run."""
    begun = time.monotonic()
    lab = _attach(name)
    made = lab.checkpoints.save_as(checkpoint, "made by hand")
    lab.release()
    print(f"{made.directory.name}: {made.size >> 20} MiB, {time.monotonic() - begun:.1f} s")


@_group.command()
def restore(
    name: Annotated[str, typer.Argument(help="The name of the lab.")],
    checkpoint: Annotated[str, typer.Argument(help="The name of the checkpoint.")] = "ready",
) -> None:
    """Restore a lab from a checkpoint."""
    begun = time.monotonic()
    lab = _attach(name)
    made = lab.checkpoints.find_named(checkpoint)
    if made is None:
        raise UsageError(
            f"no checkpoint {checkpoint!r} of this lab for {lab.qemu.label}", hint="`fxh lab list` shows the checkpoints"
        )
    lab.checkpoints.restore(made)
    lab.release()
    print(f"lab {name} is restored from {made.directory.name}: {time.monotonic() - begun:.2f} s")


@_group.command("export")
def export(
    file: Annotated[Path, typer.Argument(help="Write this archive.")],
    xen: Xen = "",
    hypervisor: Hypervisor = None,
    dom0_kernel: Dom0Kernel = None,
) -> None:
    """Export a lab as an archive, for a machine with QEMU but without Debian tools."""
    from harness.lab import archive, factory

    spec = _lab_spec(xen, hypervisor, dom0_kernel)
    factory.control(spec)
    size = archive.export(factory.image(spec), file)
    print(f"{file}: {size >> 20} MiB; there: fxh lab import {file.name}")


@_group.command("import")
def import_(file: Annotated[Path, typer.Argument(help="An archive written by `fxh lab export`.")]) -> None:
    """Import a lab from an archive into the store. Its first start creates the checkpoint, because that depends on QEMU."""
    from harness.lab import archive

    image = archive.import_(file)
    print(f"{image.directory}: Xen {image.manifest['xen']}, {image.size >> 20} MiB")
