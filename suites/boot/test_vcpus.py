# SPDX-License-Identifier: BSD-2-Clause
"""The guest uses every vCPU and manages all memory of its configuration."""

from __future__ import annotations

import time

import pytest

from harness.oracles.finding import finding
from harness.plugin.case_context import CaseContext
from harness.plugin.fixtures import Booted

# MiB that a kernel with its ramdisk may take.
KERNEL_SIZE = 56
# MiB by number of vCPUs; 0 is the default of the guest's source. Both cases share these boots. The sizes are odd, so that they are
# no whole number of superpages.
MEMORY = {1: 0, 2: 301, 4: 1001}


@pytest.mark.parametrize("vcpus", MEMORY)
def test_vcpus(booted: Booted, vcpus: int, case: CaseContext) -> None:
    """With 1, 2 and 4 vCPUs the guest runs a process on each vCPU alone and on all at once.

    Source: sys/x86/xen/pv.c, xen_pvh_start_all_aps(); sys/x86/x86/mp_x86.c; Linux arch/x86/xen/smp.c
    Catches: a panic of i386 PV 9.0 with SMP (FreeBSD r228746)
    """
    guest = booted(vcpus=vcpus, memory=MEMORY[vcpus])
    ask = guest.os

    running = ask.cpus(guest.sh)
    begun = time.monotonic()
    idle = [n for n in range(vcpus) if guest.run(ask.on_cpu(n, "echo here"), 30, check=False).text != "here"]
    work = "i=0; while [ $i -lt 3000 ]; do i=$((i+1)); done; echo done"
    together = " ".join(ask.on_cpu(n, f"sh -c '{work}'") + " &" for n in range(vcpus))
    done = guest.sh(f"{together} wait", 120).split().count("done")

    case.metrics["work"] = round(time.monotonic() - begun, 2)
    assert (running, idle, done) == (vcpus, [], vcpus), finding(
        test=f"a boot with vcpus={vcpus}, then one process bound to each CPU: one at a time, then all at once",
        observed=f"{running} CPUs run; CPUs that ran nothing: {idle or 'none'}; {done} of {vcpus} simultaneous processes ended",
        expected=f"{vcpus} CPUs run, and every process ends",
        reference=guest.os.source("vcpus"),
    )


@pytest.mark.parametrize("vcpus", [n for n, memory in MEMORY.items() if memory], ids=lambda vcpus: str(MEMORY[vcpus]))
def test_all_memory(booted: Booted, vcpus: int, case: CaseContext) -> None:
    """The kernel manages all memory of the configuration, except its own image and its bookkeeping of pages.

    Source: sys/x86/xen/pv.c, xen_pvh_parse_memmap() (FreeBSD 023a025b5c); Linux arch/x86/xen/setup.c, xen_memory_setup()
    Catches: memory that the kernel does not use (planted)
    """
    given = MEMORY[vcpus]
    guest = booted(vcpus=vcpus, memory=given)

    managed = guest.os.memory_mib(guest.sh)

    case.metrics |= {"managed": managed, "kept back": given - managed}
    # The kernel and its ramdisk, and 16 to 104 bytes of bookkeeping for each page.
    least = given - given // 20 - KERNEL_SIZE
    assert least <= managed <= given, finding(
        test=f"a boot with memory={given}",
        observed=f"the kernel manages {managed} MiB",
        expected=f"the kernel manages at least {least} MiB: all but its own image and its bookkeeping of pages",
        reference=guest.os.source("memory map"),
    )
