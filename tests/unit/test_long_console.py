# SPDX-License-Identifier: BSD-2-Clause
"""A console of any length takes bounded memory: the peak does not grow with the number of bytes."""

from __future__ import annotations

import time
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import pexpect
import pytest
from played import FREEBSD

from harness.console import diagnosis, session
from harness.console.reader import ConsoleReader
from harness.console.session import ReaderSpawn
from harness.deadline import Deadline
from harness.errors import InfrastructureError, TransportError
from harness.plugin import case_complaints
from harness.report import boot_consoles, console
from harness.results.model import Boot

MIB = 1 << 20
# Two lengths of the console. Results are made from the last MiB of a log.
READ, JUDGED = (MIB // 2, 5 * MIB // 2), (2 * MIB, 8 * MIB)
# Bytes of each end of a report of a death: the shorter console is longer than both.
REPORT = MIB // 8
# Bytes of memory for each further byte of the console. Anything that is kept costs 1 or more.
SLOPE = 0.05
FLOODS = {
    "lines": b"xbd0: Error 5 reading ring-ref\r\n" * 64,
    "one line": b"x" * 2048,
    "carriage returns": b"\r" * 2048,
    "escapes": b"\x1b[1;31m\x1b]0;" * 150,
    "prompts": b"db> \r\nmountroot> \r\nlogin: " * 80,
}


class Flood:
    """A stream of ``size`` bytes that are made when they are read."""

    def __init__(self, piece: bytes, size: int) -> None:
        self._chunk, self._left = (piece * (65536 // len(piece) + 1))[:65536], size

    def read(self, size: int, timeout: float | None = None) -> bytes:
        self._left -= len(self._chunk)
        return self._chunk if self._left >= 0 else b""

    def write(self, data: bytes) -> None:
        pass

    def close(self) -> None:
        self._left = 0


def peak(act: Callable[[], object]) -> int:
    """The most memory in bytes that ``act`` needs in addition."""
    tracemalloc.start()
    try:
        act()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def assert_bounded(act: Callable[[int], object], short: int, long: int) -> None:
    act(short)  # fills caches
    small, large = peak(lambda: act(short)), peak(lambda: act(long))
    assert (large - small) / (long - short) < SLOPE, f"{small} bytes for {short} bytes, {large} for {long}"


@pytest.mark.parametrize("name", FLOODS)
def test_reader_keeps_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setattr(diagnosis, "_REPORT", REPORT)

    def read(size: int) -> None:
        reader = ConsoleReader(Flood(FLOODS[name], size), tmp_path / f"{size}.log", tables=FREEBSD, ask=False).start()
        reader.expect_end()
        reader.join(60)
        assert reader.closed
        reader.close()
        assert (tmp_path / f"{size}.log").stat().st_size == size
        (tmp_path / f"{size}.log").unlink()

    assert_bounded(read, *READ)


def test_wait_searches_in_pieces(tmp_path: Path) -> None:
    def wait(size: int) -> None:
        reader = ConsoleReader(Flood(FLOODS["lines"], size), tmp_path / f"{size}.log", tables=FREEBSD, ask=False)
        reader.expect_end()
        reader.start()
        reader.join(60)
        with pytest.raises(TransportError, match="ended while waiting"):
            reader.wait_for(b"^never", Deadline(60), "never", 0)
        reader.close()

    assert_bounded(wait, *READ)


def test_command_output_has_a_limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(session, "_MOST", MIB)
    reader = ConsoleReader(Flood(FLOODS["lines"], 8 * MIB), tmp_path / "c.log", tables=FREEBSD, ask=False)
    spawn = ReaderSpawn(reader, 0)
    reader.expect_end()
    reader.start()
    with pytest.raises(InfrastructureError, match="more than 1 MiB during one wait"):
        spawn.expect([b"never", pexpect.TIMEOUT], timeout=20)
    reader.close()


def test_results_read_the_ends_of_a_log(tmp_path: Path) -> None:
    def judge(size: int) -> None:
        directory = tmp_path / str(size)
        directory.mkdir(exist_ok=True)
        path = directory / "g.console.log"
        with path.open("wb") as file:
            for _ in range(size // MIB):
                file.write((FLOODS["lines"] * (MIB // len(FLOODS["lines"]) + 1))[:MIB])
        with Path(f"{path}.idx").open("w") as index:
            index.writelines(f"{offset} {offset / 1e6:.6f}\n" for offset in range(0, size, 4096))
        (found,) = case_complaints.find(directory, {}) or ()
        assert found.kind == "device error"
        console.lines(path, Boot("g", (), None, 0.0, path.name))
        assert boot_consoles._console(directory)

    begun = time.process_time()
    assert_bounded(judge, *JUDGED)
    assert time.process_time() - begun < 60
