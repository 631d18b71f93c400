# SPDX-License-Identifier: BSD-2-Clause
"""Every vCPU that the configuration gives is there and works, and the memory that it gives is managed."""

from __future__ import annotations

import time

import pytest

from harness.oracles.finding import finding
from harness.plugin.case_context import CaseContext
from harness.plugin.fixtures import NewGuest

# MiB that a kernel with its ramdisk may take.
OWN = 56
# MiB by vCPUs, 0 for the source's own: a boot serves both cases. Odd ones: no whole number of superpages.
MEMORY = {1: 0, 2: 301, 4: 1001}


@pytest.mark.parametrize("vcpus", MEMORY)
def test_vcpus(booted: NewGuest, vcpus: int, case: CaseContext) -> None:
    """G13: with 1, 2 and 4 vCPUs the guest boots, runs on each of them, and on all at once."""
    guest = booted(vcpus=vcpus, memory=MEMORY[vcpus])
    ask = guest.profile

    running = ask.cpus(guest.sh)
    begun = time.monotonic()
    alone = [n for n in range(vcpus) if guest.run(ask.on_cpu(n, "echo here"), 30, check=False).text != "here"]
    work = "i=0; while [ $i -lt 3000 ]; do i=$((i+1)); done; echo done"
    together = " ".join(ask.on_cpu(n, f"sh -c '{work}'") + " &" for n in range(vcpus))
    done = guest.sh(f"{together} wait", 120).split().count("done")

    case.metrics["work"] = round(time.monotonic() - begun, 2)
    assert (running, alone, done) == (vcpus, [], vcpus), finding(
        test=f"a boot with vcpus={vcpus}, then a process bound to each, one after the other and all at once",
        observed=f"{running} CPUs run; nothing ran on {alone or 'none'}; {done} processes of {vcpus} ended",
        expected="runs on all",
        reference=guest.profile.source("vcpus"),
    )


@pytest.mark.parametrize("vcpus", [n for n, memory in MEMORY.items() if memory], ids=lambda vcpus: str(MEMORY[vcpus]))
def test_all_memory(booted: NewGuest, vcpus: int, case: CaseContext) -> None:
    """G22: of the memory that the configuration gives the kernel manages all but what it takes for itself."""
    given = MEMORY[vcpus]
    guest = booted(vcpus=vcpus, memory=given)

    managed = guest.profile.memory_mib(guest.sh)

    case.metrics |= {"managed": managed, "kept back": given - managed}
    # The kernel and its ramdisk, and 16 bytes to 104 of bookkeeping for each page.
    least = given - given // 20 - OWN
    assert least <= managed <= given, finding(
        test=f"a boot with memory={given}",
        observed=f"the kernel manages {managed} MiB",
        expected=f"manages {least} MiB at least: all but itself and its tables of pages",
        reference=guest.profile.source("memory map"),
    )
