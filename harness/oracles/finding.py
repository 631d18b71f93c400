# SPDX-License-Identifier: BSD-2-Clause
"""Composes the message of a failed case, which can be pasted into a mail, and checks that a case can judge at all."""

from __future__ import annotations

from collections.abc import Iterable

from harness.errors import CannotJudge


def finding(*, test: str, observed: str | Iterable[str], expected: str, reference: str) -> str:
    """Return the four-part message of a failed case.

    ``test`` is the action, ``observed`` the guest's behaviour in one or more lines, ``expected`` the right behaviour, and
    ``reference`` the source of that expectation.
    """
    lines = [observed] if isinstance(observed, str) else list(observed)
    return "\n".join(
        [f"test:      {test}", *(f"observed:  {line}" for line in lines), f"expected:  {expected}", f"reference: {reference}"]
    )


def precondition(holds: object, otherwise: str) -> None:
    """Raise CannotJudge with the words ``otherwise`` unless the situation that the case judges ``holds``.

    An assertion would blame the guest for what the host or the harness failed to do.
    """
    if not holds:
        raise CannotJudge(f"{otherwise}, so this case cannot judge")
