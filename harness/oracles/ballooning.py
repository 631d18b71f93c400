# SPDX-License-Identifier: BSD-2-Clause
"""Judges whether a balloon reached its target and whether the guest and Xen agree. All values are bytes."""

from __future__ import annotations

from dataclasses import dataclass

MIB = 1 << 20
# A driver works in batches of up to 512 pages of 4 KiB (FreeBSD sys/dev/xen/balloon/balloon.c), and xl rounds to MiB.
SLACK = 3 * MIB


@dataclass(frozen=True)
class Sample:
    """The memory of a guest at one time, as the guest and as Xen report it."""

    current: int
    """The size that the balloon driver reports."""
    target: int
    """The target that the balloon driver reports."""
    managed: int
    """The memory that the guest's kernel manages."""
    free: int
    """The free memory that the guest's kernel reports."""
    unexplained: int
    """The memory that is neither free, nor in a use that the kernel counts, nor given to Xen."""
    domain: int
    """The memory that Xen counts for the domain."""
    asked: int
    """The value of memory/target in xenstore."""


def freebsd_floor(memory: int) -> int:
    """Return the size below which FreeBSD does not shrink, and prints no message.

    ``memory`` is the size that the guest found at boot. Source: sys/dev/xen/balloon/balloon.c, minimum_target().
    """
    for limit, base, shift in ((128, 8, 1), (512, 40, 2), (2048, 104, 3)):
        if memory < limit * MIB:
            return base * MIB + (memory >> shift)
    return 296 * MIB + (memory >> 5)


def imbalance(before: Sample, after: Sample) -> tuple[str, ...]:
    """Return a line if the guest's and Xen's counts changed by different amounts between two settled samples."""
    guest, domain = after.current - before.current, after.domain - before.domain
    lines = []
    if abs(guest - domain) > SLACK:
        lines.append(
            f"the guest's count changed by {guest / MIB:+.1f} MiB, Xen's count of the domain's memory by {domain / MIB:+.1f} MiB"
        )
    return tuple(lines)


def missed(sample: Sample, wanted: int) -> tuple[str, ...]:
    """Return a line if the balloon of a settled guest is not at ``wanted`` bytes."""
    if abs(sample.current - wanted) <= SLACK:
        return ()
    return (
        f"the balloon is at {sample.current / MIB:.1f} MiB instead of {wanted / MIB:.1f} MiB "
        f"(the driver's target is {sample.target / MIB:.1f} MiB, memory/target in xenstore is {sample.asked / MIB:.1f} MiB)",
    )
