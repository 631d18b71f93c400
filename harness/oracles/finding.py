# SPDX-License-Identifier: BSD-2-Clause
"""Composes the message of a failed case, which can be pasted into a mail."""

from __future__ import annotations

from collections.abc import Iterable


def finding(*, test: str, observed: str | Iterable[str], expected: str, reference: str) -> str:
    """Return the four-part message of a failed case.

    ``test`` is the action, ``observed`` the guest's behaviour in one or more lines, ``expected`` the right behaviour, and
    ``reference`` the source of that expectation.
    """
    lines = [observed] if isinstance(observed, str) else list(observed)
    return "\n".join(
        [f"test:      {test}", *(f"observed:  {line}" for line in lines), f"expected:  {expected}", f"reference: {reference}"]
    )
