# SPDX-License-Identifier: BSD-2-Clause
"""After a reboot the guest runs the kernel that is on its disk; otherwise the case names the mechanism that prevented it.

The control guest replaces its ramdisk where FreeBSD replaces its kernel.
"""

from __future__ import annotations

import pytest

from harness.guests import files, replace_kernel
from harness.guests.guest import Guest
from harness.oracles.finding import finding
from harness.oracles.mechanism import NEW, OLD
from harness.plugin.case_context import CaseContext
from harness.plugin.cells import Cell
from harness.plugin.fixtures import Booted
from harness.plugin.worker_env import WorkerEnvironment

from .support import PYGRUB_RESTART, SOURCE, TwoKernels, reboot_and_log_in, wait_until_gone, without_number

# The loader of an HVM guest reads the disk itself.
pytestmark = pytest.mark.needs(capability=("pygrub",), types=("pvh", "pv"))


@pytest.fixture
def two_kernels(booted: Booted, worker_env: WorkerEnvironment, cell: Cell, case: CaseContext) -> TwoKernels:
    """A guest that pygrub booted, with a second kernel on its boot volume next to the first one."""

    def with_second_kernel(guest: Guest) -> dict[str, str]:
        volume = replace_kernel.volume(guest)
        data, _ = replace_kernel.spare(worker_env.source(cell), replace_kernel.identity(guest))
        files.put(guest, data, volume.sibling("new"), case.directory)
        guest.sh(f"cp {volume.file} {volume.sibling('old')}; sync")
        return {files.digest(guest, volume.sibling("old")): OLD, files.sha256(data): NEW, "": ""}

    guest = booted(with_second_kernel, **PYGRUB_RESTART)
    return TwoKernels(guest, guest.prepared)


def test_plain_reboot(booted: Booted) -> None:
    """After a reboot without changes the same kernel runs in a new domain, and the bootloader ran again.

    Source: xen tools/xl/xl_vmcontrol.c (restart); tools/libs/light/libxl_bootloader.c (run at each creation)
    Catches: a domain that the toolstack does not restart (planted)
    """
    guest = booted(**PYGRUB_RESTART)
    first, before = guest.domid, replace_kernel.identity(guest)

    died = reboot_and_log_in(guest, lambda: guest.session.start("reboot"))

    wrong = [f"the guest did not come back: {died}"] if died else []
    if not died:
        if guest.domid == first:
            wrong.append(f"the guest still runs in domain {first}")
        if (after := replace_kernel.identity(guest)) != before:
            wrong.append(f"{after} runs after the reboot, {before} ran before it")
        if not replace_kernel.bootloader_ran(guest, first):
            wrong.append(f"there is no bootloader log for domain {guest.domid}")
        logged = [(event.reason, event.action) for event in guest.shutdowns()]
        if logged != [("reboot", "restart")]:
            wrong.append(f"xl logged {logged or 'no shutdown'}")
    assert not wrong, finding(
        test="a reboot through pygrub without changes",
        observed=wrong,
        expected="xl logs one reboot and restart, and the same kernel runs in a new domain after the bootloader ran again",
        reference=SOURCE,
    )


WAYS = {
    "in-place": "cp {new} {file}",
    "rename": "cp {new} {file}.next && mv {file}.next {file}",
}


@pytest.mark.parametrize("way", WAYS)
def test_replaced_kernel_runs(two_kernels: TwoKernels, way: str, case: CaseContext) -> None:
    """After the kernel file was replaced and the guest rebooted cleanly, the new kernel runs.

    Source: xen tools/xl/xl_vmcontrol.c (restart); tools/libs/light/libxl_bootloader.c (run at each creation)
    Catches: stale blocks of dom0's page cache, a truncated kernel, a kernel that was not replaced (planted)
    """
    guest, volume = two_kernels.guest, two_kernels.volume
    first, old = guest.domid, replace_kernel.identity(guest)
    guest.sh(WAYS[way].format(new=volume.sibling("new"), file=volume.file))

    died = reboot_and_log_in(guest, lambda: guest.session.start(guest.os.reboot_command))

    verdict = two_kernels.judge_reboot(case, first, old, died)
    assert verdict.startswith("ok"), finding(
        test=f"a new kernel put in place ({way}), then an orderly reboot through pygrub",
        observed=without_number(verdict),
        expected="the guest comes back with the new kernel",
        reference=SOURCE,
    )


@pytest.mark.parametrize("synced", [True, False], ids=["synced", "unsynced"])
def test_replaced_then_panic(two_kernels: TwoKernels, synced: bool, case: CaseContext) -> None:
    """After the kernel was replaced and the guest panicked, the new kernel runs if it was synced.

    UFS writes names at once and data later. Without a sync the name of an incomplete kernel is possible, and no domain comes back.

    Source: xen tools/xl/xl_vmcontrol.c (restart); tools/libs/light/libxl_bootloader.c (run at each creation)
    """
    guest, volume = two_kernels.guest, two_kernels.volume
    first, old = guest.domid, replace_kernel.identity(guest)
    guest.sh(WAYS["rename"].format(new=volume.sibling("new"), file=volume.file) + ("; sync" if synced else ""))

    with guest.console.expecting_death():
        died = reboot_and_log_in(guest, lambda: guest.session.start(guest.os.panic_command()))

    verdict = two_kernels.judge_reboot(case, first, old, died)
    allowed = ("ok",) if synced else ("ok", "3: the guest had not flushed")
    assert verdict.startswith(allowed), finding(
        test=f"a new kernel put in place by rename, {'synced' if synced else 'not synced'}, then a panic",
        observed=without_number(verdict),
        expected="the guest comes back with the new kernel" + ("" if synced else ", unless the disk has no complete new kernel"),
        reference=SOURCE,
    )


@pytest.mark.parametrize("broken", ["truncated", "garbage", "empty"])
def test_broken_kernel_is_refused(two_kernels: TwoKernels, broken: str) -> None:
    """With an invalid kernel file the toolstack logs an error and gives up after one attempt, without a domain.

    Source: xen tools/xl/xl_vmcontrol.c (restart); tools/libs/light/libxl_bootloader.c (run at each creation)
    """
    guest, volume = two_kernels.guest, two_kernels.volume
    first = guest.domid
    kernel = volume.kernel
    damage = {
        "truncated": f"head -c 40000 {kernel} > {kernel}.cut; mv {kernel}.cut {kernel}",
        "garbage": f"dd if=/dev/urandom of={kernel} bs=64k count=20 2>/dev/null",
        "empty": f": > {kernel}",
    }[broken]
    guest.sh(f"cp {kernel} {kernel}.good; {damage}; sync")

    guest.console_will_end()
    guest.session.start("reboot")
    outcome = wait_until_gone(guest, first, 90)

    log, restarts = guest.host.toolstack.log(guest.name), len(guest.shutdowns())
    wrong = []
    if outcome != "gone":
        wrong.append(f"the domain is {outcome}")
    if "rror" not in log and "failed" not in log:
        wrong.append("xl's log has no error")
    if restarts != 1:
        wrong.append(f"xl logged {restarts} shutdowns")
    if not replace_kernel.bootloader_ran(guest, first):
        wrong.append("no new domain of the guest has a bootloader log")
    assert not wrong, finding(
        test=f"a reboot through pygrub with a kernel file that is {broken}",
        observed=[*wrong, *(f"xl's log: {line}" for line in log.splitlines()[-6:])],
        expected="the toolstack runs the bootloader, logs an error, gives up after one shutdown, and leaves no domain behind",
        reference=SOURCE,
    )


def test_replaced_menu(booted: Booted) -> None:
    """An argument that was changed in menu.lst arrives after the next reboot.

    Source: xen tools/libs/light/libxl_bootloader.c (run at each creation)
    Catches: a menu.lst that was not changed (planted)
    """
    guest = booted(**PYGRUB_RESTART)
    volume = replace_kernel.volume(guest)
    guest.sh(f"sed '{volume.menu_change}' {volume.menu} > {volume.menu}.next && mv {volume.menu}.next {volume.menu}; sync")

    died = reboot_and_log_in(guest, lambda: guest.session.start("reboot"))

    observed = f"the guest did not come back: {died}" if died else ""
    if not died and (variables := dict(guest.os.variables(guest.sh))).get("fxh.menu") != "two":
        observed = f"the kernel's arguments: {variables}"
    assert not observed, finding(
        test="fxh.menu=two written into menu.lst, then a reboot",
        observed=observed,
        expected="the guest comes back, and its kernel has the argument fxh.menu=two",
        reference=SOURCE,
    )


def test_alternation(two_kernels: TwoKernels, case: CaseContext) -> None:
    """With two kernels put in place in turn, each reboot runs the kernel that was put in place last.

    Source: xen tools/xl/xl_vmcontrol.c (restart); tools/libs/light/libxl_bootloader.c (run at each creation)
    """
    guest, volume = two_kernels.guest, two_kernels.volume
    rounds = 2 if guest.host.facts.emulated else 10
    test = f"{rounds} reboots, with two kernels put in place in turn"
    expected = "each reboot runs the kernel that was put in place last"
    names = {OLD: replace_kernel.identity(guest)}
    history = []
    for turn in range(rounds):
        wanted = NEW if turn % 2 == 0 else OLD
        volume = replace_kernel.volume(guest)
        guest.sh(f"cp {volume.sibling(wanted)} {volume.file}; sync")
        died = reboot_and_log_in(guest, lambda: guest.session.start("reboot"))
        assert not died, finding(
            test=test,
            observed=f"reboot {turn + 1}, {wanted} kernel in place: {died}",
            expected=expected,
            reference=SOURCE,
        )
        names.setdefault(wanted, replace_kernel.identity(guest))
        history.append((wanted, replace_kernel.identity(guest)))
    case.metrics["reboots"] = float(rounds)
    wrong = [
        f"reboot {n + 1}: {names[wanted]} was in place, {ran} runs"
        for n, (wanted, ran) in enumerate(history)
        if ran != names[wanted]
    ]
    if names[OLD] == names[NEW]:
        wrong.append(f"every reboot ran {names[OLD]}")
    assert not wrong, finding(test=test, observed=wrong, expected=expected, reference=SOURCE)


def test_cold_start_is_as_warm(two_kernels: TwoKernels) -> None:
    """After the kernel was replaced, `xl destroy` and `xl create` run the new kernel, as a reboot does.

    Source: xen tools/libs/light/libxl_bootloader.c (run at each creation)
    """
    guest, volume = two_kernels.guest, two_kernels.volume
    old = replace_kernel.identity(guest)
    guest.sh(WAYS["in-place"].format(new=volume.sibling("new"), file=volume.file) + "; sync")

    guest.destroy()
    guest.boot()

    assert replace_kernel.identity(guest) != old, finding(
        test="a new kernel put in place and synced, then xl destroy and xl create",
        observed=f"{old} runs again",
        expected="the new kernel runs",
        reference=SOURCE,
    )
