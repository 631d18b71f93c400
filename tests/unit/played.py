# SPDX-License-Identifier: BSD-2-Clause
"""A console that is read without a thread: what is found depends on the bytes alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import count
from pathlib import Path

from harness.console import deaths
from harness.console.deaths import Death
from harness.console.machinery import Machinery
from harness.console.reader import ConsoleReader
from harness.console.tables import ConsoleTables
from harness.guests.os.freebsd import FreeBSD
from harness.guests.os.linux import Linux
from harness.transport.replay import ReplayStream

FREEBSD, LINUX = FreeBSD.console, Linux.console
# For texts of both kernels.
EITHER = replace(FREEBSD, machinery=Machinery((*FREEBSD.machinery.rows, *LINUX.machinery.rows)))
_numbers = count()


def classify(data: bytes, stage: str = "", tables: ConsoleTables = EITHER) -> Death | None:
    """The death in ``data``, a console of which nothing more is known."""
    return deaths.classify(data, tables, stage)


def fed(tmp_path: Path, chunks: Sequence[bytes], tables: ConsoleTables = FREEBSD, *, requested: bool = False) -> ConsoleReader:
    """A reader that has read ``chunks`` and then the console's end. ``requested``: the end was expected."""
    path = tmp_path / f"{next(_numbers)}.log"
    reader = ConsoleReader(ReplayStream(b""), path, tables=tables, ask=False)
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
