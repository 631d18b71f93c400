# SPDX-License-Identifier: BSD-2-Clause
"""Source lines of a backtrace of 40 frames, beside `addr2line -fie` for the same frames. Run by hand: python bench/symbols.py [FILE]

Pass a FILE with debugging information; the default is the largest kernel.debug of the store. Each measurement starts a new process:

index: with an empty store, so the index is made first. The builder does this when it makes a kernel.
cold: the index is there, but the process has read nothing
warm: the same frames once more in one process
"""

from __future__ import annotations

import argparse
import json
import os
import random
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

FRAMES, ROUNDS = 40, 5
# Limits of the issue, in seconds and as a share of addr2line's time.
COLD, WARM, SHARE = 1.0, 0.1, 0.5


def largest() -> Path:
    """The largest kernel.debug in the store."""
    from harness import paths

    found = [*paths.store().glob("kernels/*/kernel.debug"), *paths.store().glob("labs/*/control/kernel.debug")]
    if not found:
        sys.exit("the store has no kernel.debug: build an image (fxh image build), or name a FILE")
    return max(found, key=lambda path: path.stat().st_size)


def frames(debug: Path) -> list[tuple[str, str]]:
    """(function, offset) of frames in the middle of functions all over the kernel."""
    from harness.xen import elfsymbols

    found = elfsymbols.functions(elfsymbols.mapped(debug))
    assert found is not None
    sized = [
        (start, end - start) for start, end in zip(found.starts, found.starts[1:], strict=False) if 64 <= end - start < 1 << 14
    ]
    names = ((found.at(start), length) for start, length in random.Random(1).sample(sized, 4 * FRAMES))
    return [(hit[0], hex(length // 2)) for hit, length in names if hit and found.address(hit[0]) == hit[1]][:FRAMES]


def ours(debug: Path, times: int) -> None:
    """Print the seconds of each lookup in this process, and the CPU seconds of all, as JSON."""
    from harness.console.backtrace import Frame
    from harness.guests import sourcelines
    from harness.images.debugfile import KernelSymbols

    asked = [Frame(*one) for one in frames(debug)]
    seconds = []
    before = cpu()
    for _ in range(times):
        begun = time.perf_counter()
        lines = sourcelines.backtrace(asked, KernelSymbols(debug))
        seconds.append(time.perf_counter() - begun)
        assert len(lines) >= FRAMES
        assert sum("(" in line for line in lines) > FRAMES // 2
    print(json.dumps({"seconds": seconds, "cpu": cpu() - before}))


def cpu() -> float:
    """CPU seconds of this process and of its ended children."""
    return sum(sum(resource.getrusage(who)[:2]) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))


def measure(debug: Path, store: Path, times: int = 1) -> dict[str, object]:
    argv = [sys.executable, __file__, "--child", str(times), str(debug)]
    done = subprocess.run(argv, capture_output=True, text=True, check=True, env={**os.environ, "FXH_STORE": str(store)})
    answer: dict[str, object] = json.loads(done.stdout)
    return answer


def addr2line(debug: Path, addresses: list[int]) -> tuple[float, float]:
    """Seconds and CPU seconds of GNU addr2line."""
    before, begun = cpu(), time.perf_counter()
    subprocess.run(["addr2line", "-fie", str(debug), *map(hex, addresses)], capture_output=True, check=True)
    return time.perf_counter() - begun, cpu() - before


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", nargs="?", type=Path)
    parser.add_argument("--child", type=int, default=0, help=argparse.SUPPRESS)
    given = parser.parse_args()
    debug = (given.file or largest()).absolute()
    if given.child:
        ours(debug, given.child)
        return
    from harness.xen import elfsymbols

    functions = elfsymbols.functions(elfsymbols.mapped(debug))
    assert functions is not None
    addresses = [(functions.address(name) or 0) + int(offset, 16) - 1 for name, offset in frames(debug)]
    found: dict[str, list[tuple[float, float]]] = {"index": [], "cold": [], "warm": [], "addr2line": []}
    for _ in range(ROUNDS):
        with tempfile.TemporaryDirectory() as store:
            for name, times in (("index", 1), ("cold", 1), ("warm", 2)):
                answer = measure(debug, Path(store), times)
                found[name].append((answer["seconds"][-1], answer["cpu"]))  # type: ignore[index,arg-type]
            found["addr2line"].append(addr2line(debug, addresses))
    print(f"{debug}: {debug.stat().st_size / 1e6:.0f} MB, {FRAMES} frames, median of {ROUNDS} rounds")
    median = {name: tuple(map(statistics.median, zip(*rows, strict=True))) for name, rows in found.items()}
    for name, (seconds, used) in median.items():
        print(f"{name:<10} {seconds:6.3f} s" + (f"   {used:6.3f} s CPU" if name != "warm" else ""))
    shares = [median[name][0] / median["addr2line"][0] for name in ("cold", "warm")]
    print("share of addr2line: " + ", ".join(f"{name} {share:.2f}" for name, share in zip(("cold", "warm"), shares, strict=True)))
    missed = [
        text for text, late in (
            (f"cold above {COLD} s", median["cold"][0] > COLD), (f"warm above {WARM} s", median["warm"][0] > WARM),
            (f"cold above {SHARE} of addr2line", shares[0] > SHARE),
        ) if late
    ]  # fmt: skip
    sys.exit("; ".join(missed) if missed else 0)


if __name__ == "__main__":
    main()
