# SPDX-License-Identifier: BSD-2-Clause
"""Makes hostile guest output safe to show and easy to match."""

from __future__ import annotations

import re

from harness.safetext import plain

XEN_STAMP = r"\[(?:[ \d:.T-]+|[0-9a-f]{16})\]"
"""A time stamp of Xen's log in all forms of console_timestamps (xen/drivers/char/console.c); the last one is ``raw``."""


def decode(data: bytes) -> str:
    """Console bytes as text. Invalid UTF-8 is replaced, and an LF with the CRs around it becomes one LF."""
    # The pattern also matches a run of CRs without an LF; otherwise the search would restart at each CR of the run.
    return re.sub(r"\r*\n\r*|\r+", lambda end: "\n" if "\n" in end[0] else end[0], data.decode("utf-8", "replace"))


# Lines of the harness's own session.
_SESSION = re.compile(r"fxh# |fxh-(?:quiet|begin|end)")
_FRAME = re.compile(r"(?:fxh# )*(?:fxh-(?:quiet|synced|begin-[0-9a-f]{8} .*|end-[0-9a-f]{8}))?\s*")
_PROMPTS = re.compile(r"^(?:fxh# )+")


def excerpt(text: str, lines: int = 40, width: int = 240) -> str:
    """The last ``lines`` lines, each cut at ``width`` characters, without prompts and markers of the harness's session."""
    kept = [line for line in plain(text[-lines * width * 2 :]).splitlines() if not line or not _FRAME.fullmatch(line)][-lines:]
    bare = [_PROMPTS.sub("", line) for line in kept]
    return "\n".join(line if len(line) <= width else line[: width - 1] + "…" for line in bare)


def report_excerpt(lead: str, report: str, before: int = 6, lines: int = 40) -> str:
    """The last ``before`` lines of ``lead``, then the first ``lines`` lines of the death's ``report``."""
    context = "\n".join([line for line in lead.splitlines() if not _SESSION.search(line)])
    head = "\n".join(report.splitlines()[:lines])
    return "\n".join([excerpt(context, before), excerpt(head, lines)]).strip("\n")
