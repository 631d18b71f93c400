"""QEMU's defect (docs/lab.md): guests that set EFER.LME before CR4.PAE, with the lab's remedy and without it."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from harness.deadline import Deadline, NotYet
from harness.errors import HarnessError, LabDead
from harness.lab import factory
from harness.lab.factory import LabWish
from harness.lab.host import LabHost
from harness.xen.config import DomainConfig


def survived(host: LabHost, times: int) -> None:
    said = host.toolstack.dmesg().count("LME before PAE survived")
    if said < times:
        raise NotYet(f"it was said {said} times")


def test_lme_before_pae_survives_also_after_a_reboot(host: LabHost, assemble: Callable[[str], Path]) -> None:
    host.prepare()
    config = DomainConfig("lme", "pvh", 32, kernel=host.files(assemble("lme_first"))[0], on_reboot="restart")

    host.toolstack.unpause(host.toolstack.create(config))

    # It reboots at once, so the toolstack re-creates it again and again by itself.
    Deadline(30).wait("the guest's word from three domains", lambda: survived(host, 3))


def test_without_the_remedy_the_hypervisor_hangs_and_the_lab_is_declared_dead(assemble: Callable[[str], Path]) -> None:
    """The defect itself, and how fast a hung hypervisor is found: within 10 s, and what waits on it ends at once."""
    lab = factory.make(LabWish())
    lab.machine.spec = replace(lab.spec, pae_first=False)
    try:
        lab.up()
        host = LabHost(lab)
        host.prepare()
        config = DomainConfig("lme", "pvh", 32, kernel=host.files(assemble("lme_first"))[0])
        domid = host.toolstack.create(config)
        begun = time.monotonic()

        def run() -> None:
            host.toolstack.unpause(domid)
            Deadline(30).wait("the guest's word", lambda: survived(host, 1))

        with pytest.raises(HarnessError):
            run()

        assert time.monotonic() - begun < 12
        assert "no sign of life" in lab.dead
        assert "paging is off" in lab.dead
        with pytest.raises(LabDead):
            lab.ssh.run(["true"])
    finally:
        lab.remove()
