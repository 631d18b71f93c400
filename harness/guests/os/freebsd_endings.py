# SPDX-License-Identifier: BSD-2-Clause
"""How a FreeBSD guest ends, by version and guest type: what Xen gets after a poweroff, a reboot, a halt and a panic."""

from __future__ import annotations

from dataclasses import dataclass

from harness.osversion import OSVersion


@dataclass(frozen=True)
class Ending:
    """The end of kernels within one of ``spans`` as a guest of one of ``types``.

    ``poweroff``, ``reboot`` and ``halt`` are values of control/shutdown. Each field holds the shutdown reason that Xen receives, or
    ``HALTS`` if the kernel stops and its domain stays. ``source`` is the source of these facts.
    """

    spans: tuple[str, ...]
    types: tuple[str, ...]
    poweroff: str
    reboot: str
    halt: str
    panic: str
    source: str


HALTS = ""
CONTROL = "sys/dev/xen/control/control.c"
# The first row that fits counts; a kernel of unknown version fits the first. "halt" calls the same handler as "poweroff"
# (xctrl_shutdown_reasons), with RB_POWEROFF.
ENDINGS = (
    # 9e0b0f5de67f went to main on 2023-11-23, when main counted 1500003 or 1500004 (Porter's Handbook), and to stable/14 with
    # c13f564f9176. 14.0-RELEASE (1400097) was branched before it; 1400507, 1402000, 1402501, 1500068 and 1501000 have it. Its number
    # in stable/14 is between 1400097 and 1400507 and not known: a kernel in between counts as an old one.
    Ending(
        (">=1400507,<1500000", ">=1500005"), ("pvh", "hvm", "pv"),
        poweroff="poweroff", reboot="reboot", halt="poweroff", panic="crash",
        source=f"{CONTROL}, xctrl_shutdown_final() for every domain type, before shutdown_halt() and shutdown_panic() "
        "(FreeBSD 9e0b0f5de67f; 14.0-STABLE 1400507 and later)",
    ),
    # Without ACPI nothing notifies Xen of a poweroff, so 13.2 halts after "poweroff" and after "halt". After "halt" that is right; after
    # "poweroff" it is a defect (known_issues.toml), so the row has the right reason.
    Ending(
        ("<1500005",), ("pvh",), poweroff="poweroff", reboot="reboot", halt=HALTS, panic="reboot",
        source=f"{CONTROL}, xen_pv_shutdown_final() for PV domains only; a panic ends in cpu_reset() (read in 1302001)",
    ),
    Ending(
        ("<1500005",), ("hvm",), poweroff="poweroff", reboot="reboot", halt="poweroff", panic="reboot",
        source=f"{CONTROL}, xen_pv_shutdown_final() for PV domains only; ACPI powers off, a panic ends in cpu_reset()",
    ),
    Ending(
        ("<1500005",), ("pv",), poweroff="poweroff", reboot="reboot", halt="poweroff", panic="reboot",
        source=f"{CONTROL} of 8 to 10, xen_pv_shutdown_final(): a panic is a reboot to it",
    ),
)  # fmt: skip


def of(version: OSVersion, guest_type: str) -> Ending:
    """The end of a kernel of ``version`` as a guest of ``guest_type``."""
    return next(row for row in ENDINGS if guest_type in row.types and any(version.within(span) for span in row.spans))
