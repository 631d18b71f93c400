# SPDX-License-Identifier: BSD-2-Clause
"""The verdict as the first line of a message, for viewers that show a result's message and nothing else of the harness."""

from __future__ import annotations

from harness.verdicts.values import KINDS, Verdict


def with_verdict(message: str, verdict: Verdict, *, again: bool) -> str:
    """``message`` below the line ``[verdict] reason``. ``again``: the message may begin with the line of an earlier call."""
    if again and any(message.startswith(f"[{kind}] ") for kind in KINDS):
        message = message.partition("\n")[2]
    return "\n".join(filter(None, (f"[{verdict.kind}] {verdict.reason}", message)))
