# SPDX-License-Identifier: BSD-2-Clause
"""Prints the progress of a long build every few seconds."""

from __future__ import annotations

import logging
import re
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

# Seconds between two lines.
EVERY = 5.0


@dataclass(frozen=True)
class Done:
    """``share`` of the work that is done, 0 to 1. ``words`` names the current step, or is empty."""

    share: float
    words: str = ""


@contextmanager
def shown(log: logging.Logger, what: str, look: Callable[[], Done]) -> Iterator[None]:
    """While the block runs, log the progress of ``what``, which ``look`` returns, every few seconds.

    ``look`` runs in another thread, and only there.
    """
    begun, ended = time.monotonic(), threading.Event()

    def report() -> None:
        while not ended.wait(EVERY):
            done = look()
            words = f"{done.words}, " if done.words else ""
            log.info("%s: %d %% done, %s%.0f s", what, min(99, int(100 * done.share)), words, time.monotonic() - begun)

    thread = threading.Thread(target=report, name=f"progress of {what}", daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


@dataclass
class Lines:
    """Reads the lines that were added to a growing file."""

    path: Path
    _read: int = field(default=0, init=False)

    def new(self) -> list[str]:
        """The complete lines since the last call; [] while the file is missing."""
        try:
            with self.path.open("rb") as file:
                file.seek(self._read)
                data = file.read()
        except FileNotFoundError:
            return []
        whole = data[: data.rfind(b"\n") + 1]
        self._read += len(whole)
        return whole.decode(errors="replace").splitlines()


@dataclass
class Expected:
    """The progress of a step that usually takes ``seconds``. Close to its end it slows down."""

    seconds: float
    _begun: float = field(default_factory=time.monotonic, init=False)

    def __call__(self) -> Done:
        passed = (time.monotonic() - self._begun) / self.seconds
        return Done(passed if passed < 0.8 else 1 - 0.16 / passed)


# I: downloading packages with apt...
_STEP = re.compile(r"^I: (.+?)\.*$")


@dataclass
class Steps:
    """The progress of mmdebstrap, by the messages in its log. ``shares`` maps the beginning of a message to the share before it."""

    lines: Lines
    shares: Mapping[str, float]
    _done: Done = field(default=Done(0.0), init=False)

    def __call__(self) -> Done:
        for line in self.lines.new():
            match = _STEP.match(line)
            for begin, share in self.shares.items():
                if match and match[1].startswith(begin) and share >= self._done.share:
                    self._done = Done(share, match[1])
        return self._done


#   CC      init/main.o
#   AS      arch/x86/entry/entry.o
_OBJECT = re.compile(r"^  (?:CC|AS|HOSTCC) +\S")


@dataclass
class Objects:
    """The progress of Linux's make: the files compiled so far, of ``total``."""

    lines: Lines
    total: int
    made: int = 0

    def __call__(self) -> Done:
        self.made += sum(_OBJECT.match(line) is not None for line in self.lines.new())
        if not self.made:
            return Done(0.0, "fetching and unpacking the source")
        return Done(self.made / max(self.total, self.made + 1), f"{self.made} of {max(self.total, self.made)} files compiled")
