# SPDX-License-Identifier: BSD-2-Clause
"""pygrub as the toolstack runs it: the kernel is handed over, and so are its arguments."""

from __future__ import annotations

import pytest

from harness.errors import GuestDied
from harness.guests.guest import Guest
from harness.hosts.host import XenHost
from harness.oracles.finding import finding
from harness.plugin.case_context import CaseContext
from harness.plugin.cells import Cell
from harness.plugin.fixtures import NewGuest, NewScratch
from harness.xen import pygrub
from harness.xen.config import Disk

from .watch import watch

# An HVM guest has its own loader read its disk.
pytestmark = pytest.mark.needs(capability=("pygrub",), types=("pvh", "pv"))

BOOTED = {"bootloader": "pygrub", "on_reboot": "restart", "on_crash": "restart"}


def test_arguments_arrive(booted: NewGuest, cell: Cell) -> None:
    """C8: what menu.lst and ``extra`` say is in the kernel's arguments; each variable on its own."""
    guest: Guest = booted(**BOOTED)
    separator = guest.profile.separator

    variables = guest.profile.variables(guest.sh)

    passed = dict(word.partition("=")[::2] for word in guest.config.extra.split(separator) if word)
    assert passed, "its configuration has no extra"
    arrived = {name: variables.get(name) for name in passed}
    assert arrived == passed, finding(
        test=f"extra={guest.config.extra!r} beside menu.lst",
        observed=f"the kernel has {arrived}",
        expected="has each variable as given",
        reference="xen tools/pygrub/src/pygrub:805; FreeBSD sys/x86/xen/pv.c, xen_pvh_parse_preload_data()",
    )
    if not cell.under_test:
        assert variables.get("fxh.menu") == "one", "menu.lst's own argument is missing"


@pytest.mark.formerly("pygrub/test_toolstack::test_no_kernel_is_a_clean_error[root]")
def test_no_kernel_is_a_clean_error(new_guest: NewGuest, scratch: NewScratch) -> None:
    """A volume without a kernel: xl says so and leaves no domain."""
    guest = new_guest(bootloader="pygrub")
    (disk,) = scratch("no-kernel")
    guest.reconfigure(disks=(Disk(disk.target),), more=(("bootloader_restrict", 0),))

    with pytest.raises(GuestDied) as caught:
        guest.create()
    left = guest.state()
    guest.destroy()

    death = caught.value.death
    assert (death.kind, death.message.partition(":")[0]) == ("refused", "bootloader failed"), finding(
        test="xl create, and no kernel on the disk",
        observed=f"xl says: {death.message}",
        expected="says that the bootloader failed",
        reference="xen tools/libs/light/libxl_bootloader.c, bootloader_finished()",
    )
    assert left is None, f"xl create failed, and left a domain in state {left.state}"


@pytest.mark.formerly("pygrub/test_toolstack::test_no_kernel_is_a_clean_error[restricted]")
@pytest.mark.needs(capability=("pygrub-restrict",))
def test_no_kernel_is_an_error_restricted(host: XenHost, scratch: NewScratch, case: CaseContext) -> None:
    """A restricted pygrub says by its status that there is no kernel. By hand: on PVH xl itself dies of one that does not."""
    (disk,) = scratch("no-kernel")
    directory = f"{host.directory}/pygrub"
    case.undo.append(lambda: host.transport.run(["rm", "-rf", directory]))

    done = pygrub.run(host.transport, directory, disk.target, restrict=True)

    assert not done.kernel, f"it extracted {done.kernel} from a disk without one"
    assert done.status != 0, finding(
        test="pygrub, restricted, on a disk without a kernel",
        observed=f"ends with status 0, by which libxl goes on without a kernel; it says {done.complaint or 'nothing'}",
        expected="ends with a status other than 0",
        reference="xen tools/pygrub/src/pygrub, depriv(): sys.exit(rc) with a wait status, of which 256 is 0",
    )


@pytest.mark.needs(capability=("pygrub-restrict",))
def test_restricted(new_guest: NewGuest, host: XenHost) -> None:
    """C12: restricted (XSA-443: a user of its own, a root of its own, limits), as all guests here: it boots all the same."""
    guest = new_guest(bootloader="pygrub")
    assert "bootloader_restrict = 1" in guest.config.render()

    with watch(host) as seen:
        guest.create()
    guest.start()
    guest.wait_stage("login")

    unprivileged = [process for process in seen if process.uid != 0]
    assert unprivileged, finding(
        test="xl create with bootloader_restrict=1",
        observed=[f"pygrub ran with uid {process.uid} and root {process.root}" for process in seen] or "no pygrub was seen",
        expected="reads the guest's disk with a uid other than 0",
        reference="xen tools/pygrub/src/pygrub, depriv(); tools/libs/light/libxl_bootloader.c, bootloader_uid()",
    )
    assert all(process.root != "/" for process in unprivileged), f"it sees dom0's files: {unprivileged}"
