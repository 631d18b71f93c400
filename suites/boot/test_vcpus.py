"""Every vCPU that the configuration gives is there and works."""

from __future__ import annotations

import time

import pytest

from harness.guests import admin
from harness.oracles.finding import finding
from harness.plugin.fixtures import NewGuest
from harness.plugin.rig import CaseContext

SOURCE = {
    "freebsd": "sys/x86/xen/pv.c, xen_pvh_start_all_aps(); sys/x86/x86/mp_x86.c",
    "linux": "arch/x86/xen/smp.c",
}


@pytest.mark.parametrize("vcpus", [1, 2, 4])
def test_vcpus(booted: NewGuest, vcpus: int, case: CaseContext) -> None:
    """G13: with 1, 2 and 4 vCPUs the guest boots, runs on each of them, and on all at once."""
    guest = booted(vcpus=vcpus)
    ask = admin.of(guest.profile)

    running = ask.cpus(guest.sh)
    begun = time.monotonic()
    alone = [n for n in range(vcpus) if guest.run(ask.on_cpu(n, "echo here"), 30, check=False).text != "here"]
    work = "i=0; while [ $i -lt 3000 ]; do i=$((i+1)); done; echo done"
    together = " ".join(ask.on_cpu(n, f"sh -c '{work}'") + " &" for n in range(vcpus))
    done = guest.sh(f"{together} wait", 120).split().count("done")

    case.metrics["work"] = round(time.monotonic() - begun, 2)
    assert (running, alone, done) == (vcpus, [], vcpus), finding(
        asked=f"a boot with vcpus={vcpus}, then a process bound to each, one after the other and all at once",
        did=f"{running} CPUs run; nothing ran on {alone or 'none'}; {done} processes of {vcpus} ended",
        good="runs on all",
        source=SOURCE[guest.profile.os],
    )
