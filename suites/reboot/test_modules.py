# SPDX-License-Identifier: BSD-2-Clause
"""A kernel that was replaced alone: the modules on the disk are those of another one."""

from __future__ import annotations

import base64

import pytest

from harness.guests.guest import Guest
from harness.images import kmodule
from harness.oracles.finding import finding


@pytest.mark.needs(os="freebsd", types=("pvh", "hvm"), freebsd=">=10.0")
def test_modules_of_another_kernel(guest: Guest) -> None:
    """F6: a module of another major version is refused in words, at once, and again by rc at boot; one of this version is taken."""
    release = int(guest.sh("sysctl -n kern.osreldate")) // 100_000 * 100_000
    for name, first in (("fxh_own", release), ("fxh_old", release - 100_000)):
        text = base64.b64encode(kmodule.module(first, first + 99_999)).decode()
        guest.sh("rm -f /tmp/m")
        # An HVM guest's serial port loses what comes faster than its interrupts: a line of 600 never arrived whole.
        for at in range(0, len(text), 200):
            guest.sh(f"printf %s '{text[at : at + 200]}' >> /tmp/m")
        guest.sh(f"b64decode -r /tmp/m > /boot/kernel/{name}.ko")
    since = guest.console.offset

    own = guest.run("kldload fxh_own && kldunload fxh_own", 30, check=False)
    old = guest.run("kldload fxh_old", 30, check=False)
    guest.sh("echo 'kld_list=\"fxh_old\"' > /etc/rc.conf.local")
    rc = guest.run("/etc/rc.d/kld onestart; rm /etc/rc.conf.local", 60, check=False)

    said = guest.console.since(since).decode(errors="replace")
    wrong = []
    if own.status:
        wrong.append(f"the module of this version: kldload ended with {own.status}: {own.text}")
    if not old.status:
        wrong.append("the module of another version was taken")
    if said.count("KLD fxh_old.ko: depends on kernel - not available or version mismatch") < 2:
        wrong.append(f"the kernel does not say twice why it refuses it; kldload: {old.text!r}, rc: {rc.text!r}")
    assert not wrong, finding(
        test=f"kldload, and rc.d/kld, of a module that was built for {release - 100_000} under a kernel of {release}",
        observed=wrong,
        expected="says `depends on kernel - not available or version mismatch` and goes on",
        reference="sys/kern/kern_linker.c, linker_load_dependencies()",
    )
