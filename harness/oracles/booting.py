# SPDX-License-Identifier: BSD-2-Clause
"""Which stages a good boot shows."""

from __future__ import annotations

from collections.abc import Sequence

# A loader writes to the console of an HVM guest only, and a quick rc may print nothing.
_OPTIONAL = frozenset({"loader", "rc"})


def expected_stages(known: Sequence[str], reached: Sequence[str], *, uefi: bool) -> list[str]:
    """The stages of ``known`` that the boot had to reach, in order; the optional ones only if it did reach them.

    ``uefi``: a UEFI firmware started the guest. No other firmware writes to the guest's serial port.
    """
    optional = _OPTIONAL if uefi else _OPTIONAL | {"firmware"}
    return [name for name in known if name in reached or name not in optional]
