# SPDX-License-Identifier: BSD-2-Clause
"""A guest whose domain can have more vCPUs than it has at boot."""

from __future__ import annotations

import time

from harness.guests.guest import Guest
from harness.oracles.finding import finding
from harness.plugin.fixtures import Booted

# vCPUs of the boot, of the domain, and the numbers that the toolstack requests then.
VCPUS, MOST, REQUESTS = 2, 4, (4, 1, 2)
# Seconds in which a guest obeys a request, if it does. Linux needs 2 under emulation.
OBEYED = 8


def idle(guest: Guest, count: int) -> list[int]:
    """The CPUs of the first ``count`` on which no process runs."""
    ask = guest.os
    return [n for n in range(count) if guest.run(ask.on_cpu(n, "echo here"), 30, check=False).text != "here"]


def await_cpus(guest: Guest, count: int) -> int:
    """Wait until ``count`` CPUs run, and return the number that run then: a guest may ignore the request."""
    deadline = guest.deadline(OBEYED)
    while (running := guest.os.cpus(guest.sh)) != count and not deadline.expired:
        time.sleep(1)
    return running


def test_vcpus_come_and_go(booted: Booted) -> None:
    """With maxvcpus above vcpus the guest starts with vcpus, and after each `xl vcpu-set` all CPUs that it shows run processes.

    FreeBSD has no CPU hot-plug and ignores the requests; Linux takes CPUs away, and its udev would add them.

    Kind of bug: a guest takes what the domain could have for what it has (possible and present CPUs).

    Source: xen tools/libs/light/libxl_acpi.c (the MADT marks the others as disabled); xl.cfg(5), maxvcpus;
        sys/x86/acpica/madt.c, madt_setup_cpus_handler(); Linux drivers/xen/cpu_hotplug.c
    """
    guest = booted(vcpus=VCPUS, maxvcpus=MOST)
    ask, wrong = guest.os, []
    before = ask.cpus(guest.sh)
    if before != VCPUS:
        wrong.append(f"after the boot the guest has {before} CPUs")

    for count in REQUESTS:
        guest.host.toolstack.vcpu_set(guest.domid, count)
        running = await_cpus(guest, count)
        if running not in (before, count):
            wrong.append(f"after xl vcpu-set {count} it has {running} CPUs instead of {before}")
        if still := idle(guest, running):
            wrong.append(f"after xl vcpu-set {count} the CPUs {still} of {running} run nothing")
        before = running

    assert not wrong, finding(
        test=f"a boot with vcpus={VCPUS} maxvcpus={MOST}, then xl vcpu-set {', '.join(map(str, REQUESTS))}",
        observed=wrong,
        expected=f"the guest starts with {VCPUS} CPUs, obeys or ignores each request, and uses all CPUs that it has",
        reference=f"xl.cfg(5), maxvcpus; {guest.os.source('vcpus')}",
    )
