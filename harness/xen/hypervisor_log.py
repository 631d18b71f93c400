# SPDX-License-Identifier: BSD-2-Clause
"""Finds the new part of Xen's log. The log is a ring of conring_size bytes, so its length does not show growth."""

from __future__ import annotations

import re

# (XEN) [   36.420541] Xen WARN at arch/x86/mm.c:1234       (xen/arch/x86/traps.c, do_invalid_op(); the time is optional)
# (XEN) Assertion 'foo' failed at common/bar.c:12
# Guests write their own lines: (d3) OVMF: DEBUG enabled
_ERROR = re.compile(r"^\(XEN\) (?:\[[^]\n]*\] )?(?:Xen (?:BUG|WARN) at|Assertion ').*", re.MULTILINE)


def since(before: str, after: str) -> str:
    """The part of the log ``after`` that the earlier log ``before`` does not end with; all of ``after`` if the ring lost the rest."""
    for start in range(len(before)):
        # The first comparison avoids a copy of the log for each character.
        if after.startswith(before[start : start + 80]) and after.startswith(before[start:]):
            return after[len(before) - start :]
    return after


def errors(text: str) -> list[str]:
    """The lines by which Xen reports a bug, a warning or a failed assertion of its own."""
    return _ERROR.findall(text)
