# SPDX-License-Identifier: BSD-2-Clause
"""The message of a failed case, ready to be pasted into a mail."""

from __future__ import annotations

from collections.abc import Iterable


def finding(*, test: str, observed: str | Iterable[str], expected: str, reference: str) -> str:
    """Return the four-part message: what was tested, what the guest did (one or more lines), what is right, and its source."""
    lines = [observed] if isinstance(observed, str) else list(observed)
    return "\n".join(
        [f"test:      {test}", *(f"observed:  {line}" for line in lines), f"expected:  {expected}", f"reference: {reference}"]
    )
