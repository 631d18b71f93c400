# SPDX-License-Identifier: BSD-2-Clause
"""A console that is read without a thread: what is found depends on the bytes alone."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import count
from pathlib import Path

from harness.console.reader import ConsoleReader
from harness.console.stages import FREEBSD, Stage
from harness.transport.replay import ReplayStream

_numbers = count()


def fed(tmp_path: Path, chunks: Sequence[bytes], stages: Sequence[Stage] = FREEBSD, *, requested: bool = False) -> ConsoleReader:
    """A reader that has read ``chunks`` and then the console's end. ``requested``: the end was expected."""
    path = tmp_path / f"{next(_numbers)}.log"
    reader = ConsoleReader(ReplayStream(b""), path, stages=stages, ask=False)
    if requested:
        reader.expect_end()
    for chunk in chunks:
        reader._take(chunk)
        reader._check()
    reader._end()
    reader.close()
    for file in (path, Path(f"{path}.idx")):
        file.unlink()
    return reader
