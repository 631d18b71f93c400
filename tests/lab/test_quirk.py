# SPDX-License-Identifier: BSD-2-Clause
"""The guard against a QEMU defect (docs/lab.md): the state in which a new domain's CPU starts, with it and without it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from harness.deadline import ConditionNotMet, Deadline
from harness.lab.host import LabHost
from harness.lab.lab import Lab
from harness.xen.config import DomainConfig

Assemble = Callable[[str], Path]
STARTS = 3


def starts(host: LabHost, kernel: Path) -> list[str]:
    """CR4.PAE at the first starts of a guest that prints it and reboots. The toolstack re-creates its domain each time."""
    host.make_directory()
    config = DomainConfig("start", "pvh", 32, kernel=host.files(kernel)[0], on_reboot="restart")

    def printed() -> list[str]:
        found = [line.rpartition(" is ")[2] for line in host.toolstack.dmesg().splitlines() if "fxh: CR4.PAE is " in line]
        if len(found) < STARTS:
            raise ConditionNotMet(f"it started {len(found)} times")
        return found

    host.toolstack.unpause(host.toolstack.create(config))
    return Deadline(60).wait(f"{STARTS} starts of the guest", printed)


def test_a_guest_starts_with_pae_also_after_a_reboot(host: LabHost, assemble: Assemble) -> None:
    found = starts(host, assemble("cr4"))
    assert set(found) == {"set" if host.lab.spec.pae_first else "clear"}, found


def test_without_the_guard_a_guest_starts_without_pae(host: LabHost, assemble: Assemble) -> None:
    """So only the guard sets it: Xen starts a PVH guest with CR4 = 0 (xen/include/public/arch-x86/hvm/start_info.h).

    This guest is safe without the guard, because it changes no control register.
    """
    host.transport.run(["rm", "-f", "/run/fxh/preload"])  # as images/dom0/init does without the guard
    assert set(starts(host, assemble("cr4"))) == {"clear"}


def test_the_reports_name_the_guard(lab: Lab) -> None:
    assert bool(LabHost(lab).facts.quirks) == lab.spec.pae_first
