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
from harness.safetext import redact

# /home/somebody/x   /root/x   /Users/somebody/x   /tmp/x
_HOME = re.compile(r"(?<![\w.])/(?:home/[^/\s:'\"]+|Users/[^/\s:'\"]+|root|(?:var/)?tmp/[^/\s:'\"]+)(?=/|\b)")


@dataclass(frozen=True)
class Scrubber:
    """``places`` maps directories of this machine to their replacements. ``names`` are words that identify the machine or its user."""

    places: Mapping[str, str] = field(default_factory=dict)
    names: tuple[str, ...] = ()

    def __call__(self, text: str) -> str:
        text = redact(text)
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
