# SPDX-License-Identifier: BSD-2-Clause
"""The progress of a FreeBSD build, from its output, as one short text."""

from __future__ import annotations

import logging
import re
import sys
import time

log = logging.getLogger("fxh.images.build")

# >>> stage 4.2: building libraries
_STAGE = re.compile(r"^>>> (stage [\d.]+: .*|.* built in \d+ seconds.*)")
# ===> lib/libc (all)
_DIRECTORY = re.compile(r"^===> (\S+) \(([\w,]+)\)")
# --- subr_log.o ---                            (with -j)
_TARGET = re.compile(r"^--- (\S+) ---$")
_EVERY = 30.0


class Progress:
    """Takes lines of output; its text is ``world: lib/libc (all), 212 directories, 341 s``."""

    def __init__(self, what: str) -> None:
        self.what, self.stage, self.target = what, "", ""
        self.directories = self.objects = 0
        self._started = self._reported = time.monotonic()

    def line(self, text: str) -> None:
        if match := _STAGE.match(text):
            self.stage = match[1]
        elif match := _DIRECTORY.match(text):
            self.directories += 1
            self.target = f"{match[1]} ({match[2]})"
        elif match := _TARGET.match(text):
            if match[1].endswith((".o", ".pico", ".pieo")):
                self.objects += 1
            if "kernel" in self.what:
                self.target = match[1]

    def __str__(self) -> str:
        words = [word for word in (self.stage, self.target) if word]
        if self.objects:
            words.append(f"{self.objects} objects")
        return f"{self.what}: {', '.join(words) or 'starting'}, {time.monotonic() - self._started:.0f} s"

    def report(self) -> None:
        """Print the text: on a terminal in place, elsewhere to the log every half minute."""
        now = time.monotonic()
        if sys.stderr.isatty():
            if now - self._reported > 0.2:
                self._reported = now
                print(f"\r\x1b[K{str(self)[:110]}", end="", file=sys.stderr, flush=True)
        elif now - self._reported > _EVERY:
            self._reported = now
            log.info("%s", self)

    def end(self) -> None:
        if sys.stderr.isatty():
            print("\r\x1b[K", end="", file=sys.stderr, flush=True)
        log.info("%s: %.0f s", self.what, time.monotonic() - self._started)
