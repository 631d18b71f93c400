# SPDX-License-Identifier: BSD-2-Clause
"""Helpers that the balloon cases share."""

from __future__ import annotations

from dataclasses import asdict

from harness.guests.guest import Guest
from harness.guests.memory import Memory
from harness.oracles.ballooning import MIB, Sample, imbalance, missed
from harness.oracles.finding import finding


def settle_balloon(guest: Guest) -> dict[str, int]:
    """Preparation of a guest: wait until its balloon does not move, and return the sample."""
    return asdict(Memory(guest).settle()[0])


def assert_balloon_at(guest: Guest, test: str, before: Sample, after: Sample, wanted: int) -> None:
    """Fail unless ``after`` is at ``wanted`` bytes and the guest and Xen agree on the change since ``before``."""
    wrong = [*missed(after, wanted), *imbalance(before, after)]
    assert not wrong, finding(
        test=test,
        observed=wrong,
        expected=f"the balloon reaches {wanted / MIB:.0f} MiB, and Xen's count of the domain's memory changes by the same amount",
        reference=guest.os.source("balloon"),
    )


def assert_no_page_lost(guest: Guest, test: str, initial: Sample, last: Sample) -> None:
    """Fail unless the guest's kernel manages as much memory as at the start of the case."""
    assert last.managed == initial.managed, finding(
        test=test,
        observed=f"the memory that the guest's kernel manages changed by {(last.managed - initial.managed) >> 10:+} KiB",
        expected="the kernel manages as many pages as before",
        reference=guest.os.source("balloon"),
    )
