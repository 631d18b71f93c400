"""The lab's guard against QEMU's defect (docs/lab.md): how a new domain's CPU starts, with it and without it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from harness.deadline import Deadline, NotYet
from harness.lab import factory
from harness.lab.factory import LabWish
from harness.lab.host import LabHost
from harness.lab.lab import Lab
from harness.xen.config import DomainConfig

Assemble = Callable[[str], Path]
STARTS = 3


def starts(host: LabHost, kernel: Path) -> list[str]:
    """How CR4.PAE is at the first starts of a guest that says so and reboots; the toolstack re-creates its domain each time."""
    host.prepare()
    config = DomainConfig("start", "pvh", 32, kernel=host.files(kernel)[0], on_reboot="restart")

    def said() -> list[str]:
        found = [line.rpartition(" is ")[2] for line in host.toolstack.dmesg().splitlines() if "fxh: CR4.PAE is " in line]
        if len(found) < STARTS:
            raise NotYet(f"it started {len(found)} times")
        return found

    host.toolstack.unpause(host.toolstack.create(config))
    return Deadline(60).wait(f"{STARTS} starts of the guest", said)


@pytest.fixture
def unguarded() -> Iterator[LabHost]:
    """A lab without the guard. The guest here is harmless in it: it changes no control register."""
    lab = factory.make(LabWish())
    lab.machine.spec = replace(lab.spec, pae_first=False)
    try:
        lab.up()
        yield LabHost(lab)
    finally:
        lab.remove()


def test_a_guest_starts_with_pae_also_after_a_reboot(host: LabHost, assemble: Assemble) -> None:
    found = starts(host, assemble("cr4"))
    assert set(found) == {"set" if host.lab.spec.pae_first else "clear"}, found


def test_without_the_guard_a_guest_starts_without_pae(unguarded: LabHost, assemble: Assemble) -> None:
    """So the guard is what sets it; Xen starts a PVH guest with CR4 = 0 (xen/include/public/arch-x86/hvm/start_info.h)."""
    assert set(starts(unguarded, assemble("cr4"))) == {"clear"}


def test_the_reports_name_the_guard(lab: Lab) -> None:
    assert bool(LabHost(lab).facts.quirks) == lab.spec.pae_first
