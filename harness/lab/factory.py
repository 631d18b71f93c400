# SPDX-License-Identifier: BSD-2-Clause
"""From what the user asked for to a lab that can be started."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from harness.errors import UsageError
from harness.lab import accel, build, criu_probe, kernel, qemu, recipe
from harness.lab.lab import Lab
from harness.lab.qemu import MachineSpec, Qemu
from harness.lab.store import LabImage

# MiB of a whole lab: dom0 takes 768, the rest is for guests. Memory that nobody touches costs nothing.
MEMORY = 3072


@dataclass(frozen=True)
class LabSpec:
    """What a lab shall be. ``memory`` in MiB; ``accel`` is auto, tcg or kvm; ``binary`` QEMU's name or path."""

    xen: str = recipe.DEFAULT_XEN
    hypervisor: Path | None = None
    dom0_kernel: Path | None = None
    memory: int = MEMORY
    cpus: int = 1
    accel: str = "auto"
    binary: str = "qemu-system-x86_64"


def find_qemu(wish: LabSpec) -> Qemu:
    return qemu.find(wish.binary)


def image(wish: LabSpec) -> LabImage:
    """The built image for ``wish``, from the store or built now. Raises BuildError, UsageError."""
    return build.build(recipe.load(wish.xen, wish.hypervisor, wish.dom0_kernel))


def control(wish: LabSpec) -> Path:
    """The directory with the control guest of ``wish``'s labs. Its kernel is built now where the store has none.

    Who tests nothing but FreeBSD never waits for it. Raises BuildError, UsageError.
    """
    wanted = recipe.load(wish.xen, wish.hypervisor, wish.dom0_kernel)
    directory = build.build(wanted).directory / "control"
    kernel.lay(wanted.control_kernel, directory)
    return directory


def machine(wish: LabSpec, chosen: accel.Accel) -> MachineSpec:
    """What QEMU shall make. The defect that "PAE first" goes round is TCG's: under KVM the remedy is off."""
    return MachineSpec(wish.memory, wish.cpus, chosen.name, chosen.cpu, pae_first=chosen.name == "tcg")


def make(wish: LabSpec, *, name: str = "", keep: bool = False) -> Lab:
    """A lab for ``wish``, not up yet."""
    if wish.memory < 1280:
        raise UsageError(f"a lab of {wish.memory} MiB", hint="give it 1280 at least: dom0 takes 768")
    if not 1 <= wish.cpus <= 16:
        raise UsageError(f"a lab of {wish.cpus} CPUs", hint="1 to 16")
    found = find_qemu(wish)
    chosen = accel.choose(found, wish.accel)
    spec = machine(wish, chosen)
    # KVM's state is the kernel's: no process holds it. And where nothing is translated, nothing is gained.
    return Lab(image(wish), found, chosen, spec, name=name, keep=keep, criu=criu_probe.find()[0] if spec.emulated else None)
