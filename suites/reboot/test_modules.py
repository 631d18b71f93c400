# SPDX-License-Identifier: BSD-2-Clause
"""A kernel that was replaced without its modules: the modules on the disk belong to another version."""

from __future__ import annotations

import base64

import pytest

from harness.guests.guest import Guest
from harness.images import kmodule
from harness.oracles.finding import finding


@pytest.mark.needs(os="freebsd", types=("pvh", "hvm"), freebsd=">=10.0")
def test_modules_of_another_kernel(guest: Guest) -> None:
    """The kernel refuses a module of another major version with a message, and loads one of its own version.

    Both kldload and rc.d/kld at boot try the module.

    Source: sys/kern/kern_linker.c, linker_load_dependencies()
    """
    release = int(guest.sh("sysctl -n kern.osreldate")) // 100_000 * 100_000
    for name, first in (("fxh_own", release), ("fxh_old", release - 100_000)):
        text = base64.b64encode(kmodule.module(first, first + 99_999)).decode()
        guest.sh("rm -f /tmp/m")
        # A serial port loses input that is faster than its interrupts: a line of 600 bytes never arrived complete.
        for at in range(0, len(text), 200):
            guest.sh(f"printf %s '{text[at : at + 200]}' >> /tmp/m")
        guest.sh(f"b64decode -r /tmp/m > /boot/kernel/{name}.ko")
    since = guest.console.offset

    own = guest.run("kldload fxh_own && kldunload fxh_own", 30, check=False)
    old = guest.run("kldload fxh_old", 30, check=False)
    guest.sh("echo 'kld_list=\"fxh_old\"' > /etc/rc.conf.local")
    rc = guest.run("/etc/rc.d/kld onestart; rm /etc/rc.conf.local", 60, check=False)

    printed = guest.console.since(since).decode(errors="replace")
    wrong = []
    if own.status:
        wrong.append(f"the module of this version is refused: kldload ends with status {own.status}: {own.text}")
    if not old.status:
        wrong.append("the module of another version is loaded")
    if (count := printed.count("KLD fxh_old.ko: depends on kernel - not available or version mismatch")) < 2:
        wrong.append(f"the kernel printed the reason {count} times instead of 2; kldload: {old.text!r}, rc.d/kld: {rc.text!r}")
    assert not wrong, finding(
        test=f"kldload and rc.d/kld of a module for {release - 100_000} on a kernel of {release}, and kldload of one for {release}",
        observed=wrong,
        expected="the kernel prints `depends on kernel - not available or version mismatch`, refuses the module, and continues",
        reference="sys/kern/kern_linker.c, linker_load_dependencies()",
    )
