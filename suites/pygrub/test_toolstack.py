# SPDX-License-Identifier: BSD-2-Clause
"""pygrub as xl runs it: the guest gets the kernel and its arguments, and a failure is reported."""

from __future__ import annotations

import pytest

from harness.errors import GuestDied
from harness.guests.guest import Guest
from harness.guests.shape import ShapeArgs
from harness.hosts.host import XenHost
from harness.oracles.finding import finding, precondition
from harness.plugin.case_context import CaseContext
from harness.plugin.cells import Cell
from harness.plugin.fixtures import Booted, NewGuest, NewScratch
from harness.xen import pygrub
from harness.xen.config import Disk

from .recorder import record_pygrub

# The loader of an HVM guest reads the disk itself.
pytestmark = pytest.mark.needs(capability=("pygrub",), types=("pvh", "pv"))

BOOTED: ShapeArgs = {"bootloader": "pygrub", "on_reboot": "restart", "on_crash": "restart"}


def test_arguments_arrive(booted: Booted, cell: Cell) -> None:
    """The kernel gets the variables of menu.lst and of `extra`, each with its value.

    Source: xen tools/pygrub/src/pygrub:805; FreeBSD sys/x86/xen/pv.c, xen_pvh_parse_preload_data()
    """
    guest: Guest = booted(**BOOTED)
    separator = guest.os.separator

    variables = guest.os.variables(guest.sh)

    passed = dict(word.partition("=")[::2] for word in guest.config.extra.split(separator) if word)
    precondition(passed, "the domain configuration has no `extra`")
    if not cell.under_test:
        # The control guest's menu.lst has this argument.
        passed["fxh.menu"] = "one"
    arrived = {name: variables.get(name) for name in passed}
    assert arrived == passed, finding(
        test=f"a boot through pygrub with extra={guest.config.extra!r}",
        observed=f"the kernel has {arrived}",
        expected=f"the kernel has {passed}",
        reference="xen tools/pygrub/src/pygrub:805; FreeBSD sys/x86/xen/pv.c, xen_pvh_parse_preload_data()",
    )


@pytest.mark.formerly("pygrub/test_toolstack::test_no_kernel_is_a_clean_error[root]")
def test_no_kernel_is_a_clean_error(new_guest: NewGuest, scratch: NewScratch) -> None:
    """With a volume without a kernel, xl reports that the bootloader failed and leaves no domain.

    Source: xen tools/libs/light/libxl_bootloader.c, bootloader_finished()
    """
    guest = new_guest(bootloader="pygrub")
    (disk,) = scratch("no-kernel")
    guest.reconfigure(disks=(Disk(disk.target),), more=(("bootloader_restrict", 0),))

    with pytest.raises(GuestDied) as caught:
        guest.create()
    left = guest.state()
    guest.destroy()

    death = caught.value.death
    wrong = []
    if (death.kind, death.message.partition(":")[0]) != ("refused", "bootloader failed"):
        wrong.append(f"xl reports: {death.message}")
    if left is not None:
        wrong.append(f"xl create failed and left a domain in state {left.state}")
    assert not wrong, finding(
        test="xl create with a disk without a kernel",
        observed=wrong,
        expected="xl reports that the bootloader failed and leaves no domain",
        reference="xen tools/libs/light/libxl_bootloader.c, bootloader_finished()",
    )


@pytest.mark.formerly("pygrub/test_toolstack::test_no_kernel_is_a_clean_error[restricted]")
@pytest.mark.needs(capability=("pygrub-restrict",))
def test_no_kernel_is_an_error_restricted(host: XenHost, scratch: NewScratch, case: CaseContext) -> None:
    """A restricted pygrub ends with a status other than 0 if the disk has no kernel.

    pygrub runs by hand, because on PVH xl aborts when pygrub ends with status 0 and no kernel.

    Source: xen tools/pygrub/src/pygrub, depriv()
    Catches: the wait status that depriv() gives to sys.exit(), by which a failure becomes 0 (known issue)
    """
    (disk,) = scratch("no-kernel")
    directory = f"{host.directory}/pygrub"
    case.undo.append(lambda: host.transport.run(["rm", "-rf", directory]))

    done = pygrub.run(host.transport, directory, disk.target, restrict=True)

    assert not done.kernel, f"pygrub extracted {done.kernel} from a disk without a kernel"
    assert done.status != 0, finding(
        test="a restricted pygrub on a disk without a kernel",
        observed=f"pygrub ends with status 0, so libxl continues without a kernel; its message: {done.complaint or 'none'}",
        expected="pygrub ends with a status other than 0",
        reference="xen tools/pygrub/src/pygrub, depriv(): sys.exit(rc) with a wait status, of which 256 is 0",
    )


@pytest.mark.needs(capability=("pygrub-restrict",))
def test_restricted(new_guest: NewGuest, host: XenHost) -> None:
    """A guest boots through a restricted pygrub, which runs without root rights and does not see dom0's files.

    All guests of this suite have ``bootloader_restrict=1`` (XSA-443: own user, own root directory, limits).

    Source: xen tools/pygrub/src/pygrub, depriv(); tools/libs/light/libxl_bootloader.c, bootloader_uid()
    """
    guest = new_guest(bootloader="pygrub")
    precondition(
        "bootloader_restrict = 1" in guest.config.render(), "the domain configuration does not set bootloader_restrict = 1"
    )

    with record_pygrub(host) as seen:
        guest.create()
    guest.start()
    guest.wait_stage("login")

    unprivileged = [process for process in seen if process.uid != 0]
    confined = bool(unprivileged) and all(process.root != "/" for process in unprivileged)
    assert confined, finding(
        test="xl create with bootloader_restrict=1",
        observed=[f"pygrub ran with uid {process.uid} and the root directory {process.root}" for process in seen]
        or "no pygrub process was seen",
        expected="pygrub reads the guest's disk with a uid other than 0 and a root directory other than /",
        reference="xen tools/pygrub/src/pygrub, depriv(); tools/libs/light/libxl_bootloader.c, bootloader_uid()",
    )
