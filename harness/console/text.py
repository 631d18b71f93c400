# SPDX-License-Identifier: BSD-2-Clause
"""What a guest prints is hostile: these make it safe to show and easy to match."""

from __future__ import annotations

import re

# ESC [ 9 9 9 ; 9 9 9 H   ESC ] P 0 0 0 0 0 0 0 (Linux)   ESC ] 0 ; title BEL   ESC 7   ESC ( B
# A string without its end is none: the rest of its line is text.
ESCAPE = r"\x1b(?:\[[0-?]*[ -/]*[@-~]|\]P[0-9A-Fa-f]{7}|\]R|[\]P^_X][^\x07\x1b\r\n]{0,256}(?:\x07|\x1b\\)|[ -/]*[0-~])"
_ESCAPE = re.compile(ESCAPE)
# Everything that is neither a line end, a tab nor printable, and the marks that reorder text.
_CONTROL = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\u200e\u200f\u202a-\u202e\u2066-\u2069]")


def decode(data: bytes) -> str:
    """Console bytes as text: bad UTF-8 replaced, an LF with the CRs before and behind it made one LF."""
    # A run of CRs without an LF is one match, too: it is not looked at again from each of its bytes.
    return re.sub(r"\r*\n\r*|\r+", lambda end: "\n" if "\n" in end[0] else end[0], data.decode("utf-8", "replace"))


def plain(text: str) -> str:
    """Without escape sequences; other control characters shown as ``<0x07>``: safe for a terminal and for a page."""
    text = _ESCAPE.sub("", text.replace("\r", "\n") if "\n" not in text else text.replace("\r", ""))
    return _CONTROL.sub(lambda match: f"<0x{ord(match[0]):02x}>", text)


# What our own session typed or had echoed: it says nothing about a guest.
_OURS = re.compile(r"fxh# |fxh-(?:quiet|begin|end)")
_FRAME = re.compile(r"(?:fxh# )*(?:fxh-(?:quiet|synced|begin-[0-9a-f]{8} .*|end-[0-9a-f]{8}))?\s*")
_PROMPTS = re.compile(r"^(?:fxh# )+")


def excerpt(text: str, lines: int = 40, width: int = 240) -> str:
    """The last ``lines`` lines, each cut at ``width`` characters, without our session's prompts and marks."""
    kept = [line for line in plain(text[-lines * width * 2 :]).splitlines() if not line or not _FRAME.fullmatch(line)][-lines:]
    bare = [_PROMPTS.sub("", line) for line in kept]
    return "\n".join(line if len(line) <= width else line[: width - 1] + "…" for line in bare)


def report_excerpt(lead: str, report: str, before: int = 6, lines: int = 40) -> str:
    """The first ``lines`` lines of a death's report, after the last ``before`` lines that led up to it."""
    led = "\n".join([line for line in lead.splitlines() if not _OURS.search(line)])
    head = "\n".join(report.splitlines()[:lines])
    return "\n".join([excerpt(led, before), excerpt(head, lines)]).strip("\n")
