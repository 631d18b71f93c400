# SPDX-License-Identifier: BSD-2-Clause
"""What a balloon driver should do with a target, and whether both sides of it agree. Everything in bytes."""

from __future__ import annotations

from dataclasses import dataclass

MIB = 1 << 20
# A driver works in batches of up to 512 pages of 4 KiB (FreeBSD sys/dev/xen/balloon/balloon.c), and xl rounds to MiB.
SLACK = 3 * MIB


@dataclass(frozen=True)
class Sample:
    """One look from both sides: the guest's own numbers, what Xen says the domain has, what xenstore asks for."""

    current: int
    target: int
    managed: int
    free: int
    domain: int
    asked: int


def freebsd_floor(memory: int) -> int:
    """Below this FreeBSD does not go, without a word (balloon.c, minimum_target()); ``memory`` is what it found at boot."""
    for limit, base, shift in ((128, 8, 1), (512, 40, 2), (2048, 104, 3)):
        if memory < limit * MIB:
            return base * MIB + (memory >> shift)
    return 296 * MIB + (memory >> 5)


def imbalance(before: Sample, after: Sample) -> tuple[str, ...]:
    """What does not fit between two settled samples: the guest and Xen must have moved by the same amount."""
    guest, domain = after.current - before.current, after.domain - before.domain
    lines = []
    if abs(guest - domain) > SLACK:
        lines.append(f"the guest's count moved by {guest / MIB:+.1f} MiB, the domain's memory in Xen by {domain / MIB:+.1f} MiB")
    return tuple(lines)


def missed(sample: Sample, wanted: int) -> tuple[str, ...]:
    """Whether a settled guest is where it was asked to be."""
    if abs(sample.current - wanted) <= SLACK:
        return ()
    return (
        f"the balloon stands at {sample.current / MIB:.1f} MiB, {wanted / MIB:.1f} MiB was due "
        f"(its own target: {sample.target / MIB:.1f} MiB; xenstore asks for {sample.asked / MIB:.1f} MiB)",
    )
