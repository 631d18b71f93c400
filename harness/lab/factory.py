# SPDX-License-Identifier: BSD-2-Clause
"""Make a lab from the user's options."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from harness.config.runoptions import LEAST_LAB_MEMORY, MOST_LAB_CPUS
from harness.errors import UsageError
from harness.lab import accel, background, build, criu_probe, kernel, qemu, recipe, standby
from harness.lab.lab import Lab
from harness.lab.qemu import MachineSpec, Qemu
from harness.lab.store import LabImage

# MiB of a whole lab: 768 for dom0, the rest for guests. Untouched memory takes no memory of this machine.
MEMORY = 3072


@dataclass(frozen=True)
class LabSpec:
    """The options of a lab. ``memory`` is in MiB; ``accel`` is auto, tcg or kvm; ``binary`` is QEMU's name or path."""

    xen: str = recipe.DEFAULT_XEN
    hypervisor: Path | None = None
    dom0_kernel: Path | None = None
    memory: int = MEMORY
    cpus: int = 1
    accel: str = "auto"
    binary: str = "qemu-system-x86_64"


def find_qemu(spec: LabSpec) -> Qemu:
    return qemu.find(spec.binary)


def image(spec: LabSpec) -> LabImage:
    """The lab's image, from the store or built now. Raises BuildError, UsageError."""
    return build.build(recipe.load(spec.xen, spec.hypervisor, spec.dom0_kernel))


def control(spec: LabSpec) -> Path:
    """The directory with the lab's control guest. Raises BuildError, UsageError.

    Its kernel is built here, at first use, so that a run of FreeBSD guests alone does not wait for it.
    """
    found = recipe.load(spec.xen, spec.hypervisor, spec.dom0_kernel)
    directory = build.build(found).directory / "control"
    kernel.install(found.control_kernel, directory)
    return directory


def control_available(spec: LabSpec) -> bool:
    """Whether :func:`control` needs no build of a kernel. Raises UsageError."""
    found = recipe.load(spec.xen, spec.hypervisor, spec.dom0_kernel)
    image = build.find(found)
    return kernel.available(found.control_kernel, image.directory / "control" if image is not None else None)


def begin(spec: LabSpec, *, control: bool) -> None:
    """Start to build the lab in the background, and with ``control`` the control guest's kernel, as far as they are missing.

    Raises UsageError.
    """
    found = recipe.load(spec.xen, spec.hypervisor, spec.dom0_kernel)
    background.begin_image(found)
    if control and not control_available(spec):
        background.begin_kernel(found)


def control_with_dom0_kernel(spec: LabSpec) -> Path:
    """As :func:`control`, with dom0's kernel, which is there without a build. Raises BuildError, UsageError."""
    return standby.obtain(image(spec))


def machine(spec: LabSpec, chosen: accel.Accel) -> MachineSpec:
    """The machine for QEMU. "PAE first" works around a defect of TCG, so it is off under KVM (docs/lab.md)."""
    return MachineSpec(spec.memory, spec.cpus, chosen.name, chosen.cpu, pae_first=chosen.name == "tcg")


def make(spec: LabSpec, *, name: str = "", keep: bool = False) -> Lab:
    """A lab that is not up yet. Raises UsageError, BuildError, InfrastructureError."""
    if spec.memory < LEAST_LAB_MEMORY:
        raise UsageError(f"a lab of {spec.memory} MiB is too small", hint=f"use at least {LEAST_LAB_MEMORY}: dom0 takes 768")
    if not 1 <= spec.cpus <= MOST_LAB_CPUS:
        raise UsageError(f"a lab cannot have {spec.cpus} CPUs", hint=f"use 1 to {MOST_LAB_CPUS}")
    found = find_qemu(spec)
    with ThreadPoolExecutor() as pool:
        # At first each of them takes seconds, and the image takes a minute. The store keeps their results.
        pool.submit(accel.choose, found, spec.accel)
        pool.submit(criu_probe.find)
        built = image(spec)
    chosen = accel.choose(found, spec.accel)
    machine_spec = machine(spec, chosen)
    # Under KVM, CRIU cannot save the machine: its state is in the kernel. Nor is there translated code to save.
    return Lab(
        built, found, chosen, machine_spec, name=name, keep=keep, criu=criu_probe.find()[0] if machine_spec.emulated else None
    )
