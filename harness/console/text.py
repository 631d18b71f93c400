# SPDX-License-Identifier: BSD-2-Clause
"""Makes hostile guest output safe to show and easy to match."""

from __future__ import annotations

import re

# ESC [ 9 9 9 ; 9 9 9 H   ESC ] P 0 0 0 0 0 0 0 (Linux)   ESC ] 0 ; title BEL   ESC 7   ESC ( B
# A control string without its end is not removed: the rest of its line is text.
ESCAPE = r"\x1b(?:\[[0-?]*[ -/]*[@-~]|\]P[0-9A-Fa-f]{7}|\]R|[\]P^_X][^\x07\x1b\r\n]{0,256}(?:\x07|\x1b\\)|[ -/]*[0-~])"
_ESCAPE = re.compile(ESCAPE)
# Unprintable characters except line ends and tabs, and the marks that reorder text.
_CONTROL = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\u200e\u200f\u202a-\u202e\u2066-\u2069]")


def decode(data: bytes) -> str:
    """Console bytes as text. Invalid UTF-8 is replaced, and an LF with the CRs around it becomes one LF."""
    # The pattern also matches a run of CRs without an LF; otherwise the search would restart at each CR of the run.
    return re.sub(r"\r*\n\r*|\r+", lambda end: "\n" if "\n" in end[0] else end[0], data.decode("utf-8", "replace"))


def plain(text: str) -> str:
    """``text`` without escape sequences, and with other control characters as ``<0x07>``: safe for terminals and HTML."""
    text = _ESCAPE.sub("", text.replace("\r", "\n") if "\n" not in text else text.replace("\r", ""))
    return _CONTROL.sub(lambda match: f"<0x{ord(match[0]):02x}>", text)


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
