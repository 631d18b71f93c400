"""The console reader on a 100 MB log, beside pexpect's own expect on the same log. Run by hand: python bench/console.py"""

from __future__ import annotations

import resource
import statistics
import tempfile
import time
from pathlib import Path

import pexpect
from pexpect.spawnbase import SpawnBase

from harness.console.reader import ConsoleReader
from harness.console.stages import FREEBSD
from harness.transport.replay import ReplayStream

SIZE = 100 << 20
CHUNK = 1 << 14
BOOT = (Path(__file__).parent.parent / "tests" / "consoles" / "freebsd-13.2-pvh-boot-login-panic.log").read_bytes()


def log() -> bytes:
    """A boot, then lines as a chatty guest prints them, then the panic."""
    head, panic, tail = BOOT.partition(b"panic: ")
    filler = b"".join(b"%08d the quick brown fox jumps over the lazy daemon and its ringbuffer\r\n" % n for n in range(20000))
    return head + filler * ((SIZE - len(BOOT)) // len(filler) + 1) + panic + tail


class Fed(SpawnBase):
    """pexpect over the same chunks, all of them there at once."""

    def __init__(self, data: bytes) -> None:
        super().__init__(timeout=600, maxread=CHUNK)
        self._data, self._at = data, 0

    def read_nonblocking(self, size: int = 1, timeout: float | None = None) -> bytes:
        if self._at >= len(self._data):
            raise pexpect.EOF("end")
        chunk = self._data[self._at : self._at + CHUNK]
        self._at += CHUNK
        return chunk


def ours(data: bytes, directory: Path) -> float:
    path = directory / f"c{time.monotonic_ns()}.log"
    reader = ConsoleReader(ReplayStream(data, sizes=(CHUNK,)), path, stages=FREEBSD)
    begun = time.monotonic()
    reader.start()
    reader.join(600)
    seconds = time.monotonic() - begun
    assert reader.death is not None
    assert reader.death.kind == "panic"
    path.unlink()
    return seconds


def theirs(data: bytes, window: int | None) -> float:
    begun = time.monotonic()
    Fed(data).expect(rb"panic: [^\r\n]+", searchwindowsize=window)
    return time.monotonic() - begun


def main() -> None:
    data = log()
    megabytes = len(data) / 1e6
    with tempfile.TemporaryDirectory() as scratch:
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        runs = [ours(data, Path(scratch)) for _ in range(5)]
        grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    rate = megabytes / statistics.median(runs)
    print(f"reader (all stages and deaths, logged and stamped): {rate:.0f} MB/s on {megabytes:.0f} MB   bound 30 MB/s")
    print(f"    memory grown by {grown / 1024:.1f} MiB over five such logs (the replay holds its chunks)")
    windowed = [theirs(data, 4096) for _ in range(3)]
    print(f"pexpect, one pattern, searchwindowsize 4096: {megabytes / statistics.median(windowed):.0f} MB/s")
    small = data[: 4 << 20]
    small += data[-2000:]
    plain = theirs(small, None)
    print(f"pexpect, one pattern, no window, on {len(small) / 1e6:.0f} MB only: {len(small) / 1e6 / plain:.2f} MB/s")


if __name__ == "__main__":
    main()
