# SPDX-License-Identifier: BSD-2-Clause
"""Lists the stages that a good boot shows on the console."""

from __future__ import annotations

from collections.abc import Sequence

# Only the loader of an HVM guest writes to the console, and a fast rc may print nothing.
_OPTIONAL = frozenset({"loader", "rc"})


def expected_stages(known: Sequence[str], reached: Sequence[str], *, uefi: bool) -> list[str]:
    """Return the stages of ``known`` that the boot must show, in order. An optional stage counts only if it was reached.

    ``uefi`` means that a UEFI firmware started the guest. Other firmware does not write to the guest's serial port.
    """
    optional = _OPTIONAL if uefi else _OPTIONAL | {"firmware"}
    return [name for name in known if name in reached or name not in optional]
