# SPDX-License-Identifier: BSD-2-Clause
"""Remove local paths, names and secrets from text that leaves this machine."""

from __future__ import annotations

import getpass
import re
import socket
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from harness import paths

REMOVED = "(removed)"

# Repetitions are bounded, because a guest's console may have millions of characters that almost match.
# -----BEGIN OPENSSH PRIVATE KEY----- ... -----END OPENSSH PRIVATE KEY-----
_KEY = re.compile(r"-----BEGIN [A-Z0-9 ]*PRIVATE KEY-----.*?(?:-----END [A-Z0-9 ]*PRIVATE KEY-----|\Z)", re.DOTALL)
# password=x   "api_key": "x"   AUTH_TOKEN: x   vncpasswd = 'x'
_SECRET = re.compile(
    r"(?i)(?<!\w)(\w{0,40}?(?:passw(?:or)?d|passwd|secret|token|api[_-]?key|credential)\w{0,40}[\"']?[ \t]{0,8}[=:][ \t]{0,8})(\"[^\"\n]*\"|'[^'\n]*'|[^\s,;]+)"
)
# Authorization: Bearer x
_AUTHORIZATION = re.compile(r"(?i)\b((?:proxy-)?authorization\s*:\s*)[^\r\n]+")
# https://user:password@host/
_IN_URL = re.compile(r"(\b[a-z][a-z0-9+.-]{0,20}://)[^/\s@]{1,200}@")
# AKIA0123456789ABCDEF   ghp_...   xoxb-...
_KNOWN = re.compile(r"\b(?:AKIA[0-9A-Z]{16}|gh[pousr]_[A-Za-z0-9]{20,}|xox[abprs]-[A-Za-z0-9-]{10,})\b")
# /home/somebody/x   /root/x   /Users/somebody/x   /tmp/x
_HOME = re.compile(r"(?<![\w.])/(?:home/[^/\s:'\"]+|Users/[^/\s:'\"]+|root|(?:var/)?tmp/[^/\s:'\"]+)(?=/|\b)")


@dataclass(frozen=True)
class Scrubber:
    """``places`` maps directories of this machine to their replacements. ``names`` are words that identify the machine or its user."""

    places: Mapping[str, str] = field(default_factory=dict)
    names: tuple[str, ...] = ()

    def __call__(self, text: str) -> str:
        text = _KEY.sub(REMOVED, text)
        text = _AUTHORIZATION.sub(rf"\1{REMOVED}", text)
        text = _SECRET.sub(rf"\1{REMOVED}", text)
        text = _IN_URL.sub(rf"\1{REMOVED}@", text)
        text = _KNOWN.sub(REMOVED, text)
        for place, word in sorted(self.places.items(), key=lambda item: -len(item[0])):
            text = re.sub(rf"{re.escape(place)}(?![\w.-])", lambda _, word=word: word, text)  # type: ignore[misc]
        text = _HOME.sub("(path)", text)
        for name in self.names:
            text = re.sub(rf"(?<![\w-]){re.escape(name)}(?![\w-])", "(name)", text)
        return text


def of_this_machine(extra: Mapping[str, str]) -> Scrubber:
    """A scrubber for the harness's directories, the home directory, the host name and the user name; ``extra`` adds directories."""
    places = {
        str(paths.project()): "(harness)",
        str(paths.PACKAGE): "(harness)/harness",
        str(paths.store()): "(store)",
        str(paths.runtime()): "(runtime)",
        str(Path.home()): "(home)",
    } | dict(extra)
    names = [socket.gethostname()]
    with suppress(OSError, KeyError):
        names.append(getpass.getuser())
    # "root" and "localhost" identify no person, and logs contain them often.
    return Scrubber(
        {place: word for place, word in places.items() if len(place) > 1},
        tuple(n for n in names if n not in ("root", "localhost", "")),
    )
