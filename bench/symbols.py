# SPDX-License-Identifier: BSD-2-Clause
"""Source lines of a backtrace of 40 frames, beside `addr2line -fie` for the same frames. Run by hand: python bench/symbols.py [FILE]

Pass a FILE with debugging information; the default is the largest kernel.debug of the store. `--copies N DIRECTORY` makes one: it links
the objects of a kernel that the builder made N times (3: about 120 MB). Without such a kernel it compiles sources of its own, with types
and inlined functions as a kernel has them (45: about 100 MB). Each measurement starts a new process:

first: with an empty store. LLVM's symbolizer answers; the index is made meanwhile, and `index` is the time of both.
cold: the index is there, but the process has read nothing
warm: the same frames once more in one process

The limits hold for CPU time, because the seconds of a busy machine include the work of other programs.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

FRAMES, ROUNDS = 40, 5
# Of the sources that are compiled if there is no kernel: files, and types and functions in each.
UNITS, TYPES, FUNCTIONS = 12, 60, 150
# Limits in seconds, and as a share of addr2line's time. The share does not hold for the first use: there is nothing to read but DWARF.
FIRST, COLD, WARM, SHARE = 1.0, 1.0, 0.1, 0.5
# Seconds, and seconds of CPU.
Cost = tuple[float, float]


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
    """Print the cost of each lookup in this process as JSON, and that of the index if it was made."""
    from harness.console.backtrace import Frame
    from harness.guests import sourcelines
    from harness.images.debugfile import KernelSymbols
    from harness.xen import symbolizer

    asked = [Frame(*one) for one in frames(debug)]
    found: list[Cost] = []
    for _ in range(times):
        before, begun = cpu(), time.perf_counter()
        lines = sourcelines.backtrace(asked, KernelSymbols(debug))
        found.append((time.perf_counter() - begun, cpu() - before))
        assert len(lines) >= FRAMES
        assert sum("(" in line for line in lines) > FRAMES // 2
    for thread in symbolizer._making.values():
        thread.join()
        found.append((time.perf_counter() - begun, cpu() - before))
    print(json.dumps(found))


def cpu() -> float:
    """CPU seconds of this process and of its ended children."""
    return sum(sum(resource.getrusage(who)[:2]) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))


def measure(debug: Path, store: Path, times: int = 1) -> list[Cost]:
    argv = [sys.executable, __file__, "--child", str(times), str(debug)]
    done = subprocess.run(argv, capture_output=True, text=True, check=True, env={**os.environ, "FXH_STORE": str(store)})
    return [(seconds, used) for seconds, used in json.loads(done.stdout)]


def addr2line(debug: Path, addresses: list[int]) -> Cost:
    """The cost of GNU addr2line."""
    before, begun = cpu(), time.perf_counter()
    subprocess.run(["addr2line", "-fie", str(debug), *map(hex, addresses)], capture_output=True, check=True)
    return time.perf_counter() - begun, cpu() - before


def source(number: int) -> str:
    """C with structures, and functions that inline others three levels deep, over several headers by #line."""
    unit = f"u{number}"
    types = [
        f"struct {unit}_s{n} {{ int a{n}; long b{n}[{n + 1}]; struct {unit}_s{max(0, n - 1)} *next; union {{ char c[{n + 4}]; void *p; }} u; "
        f"int (*handler)(struct {unit}_s{n} *, unsigned long); }};"
        for n in range(TYPES)
    ]
    lines = ["typedef unsigned long u_long;", *types, "volatile u_long sink;"]
    for n in range(FUNCTIONS):
        kind = f"struct {unit}_s{n % TYPES}"
        lines += [
            f'#line {10 + 9 * n} "/usr/src/sys/sys/{unit}_{n % 7}.h"',
            f"static inline __attribute__((always_inline)) u_long {unit}_get{n}({kind} *sc, u_long at)",
            "{",
            f"  sink += at; u_long found = sc->b{n % TYPES}[at % {n % TYPES + 1}] * {2 * n + 3};",
            "  return (found ^ sink);",
            "}",
            f"static inline __attribute__((always_inline)) u_long {unit}_map{n}({kind} *sc, u_long at)",
            f"{{ for (int i = 0; i < sc->a{n % TYPES}; i++) at += {unit}_get{n}(sc, at + i);",
            f"  return (at + {unit}_get{n}(sc, ~at)); }}",
            f'#line {20 + 11 * n} "/usr/src/sys/kern/{unit}.c"',
            f"__attribute__((noinline)) u_long {unit}_run{n}({kind} *sc, u_long begin, u_long end)",
            "{",
            "  u_long total = 0;",
            f"  for (u_long at = begin; at < end; at++) total += {unit}_map{n}(sc, at);",
            f"  if (sc->next != 0) total += {unit}_map{n}(sc, total);",
            f"  return (total + {unit}_get{n}(sc, total));",
            "}",
        ]
    return "\n".join(lines) + "\n"


def compiled(directory: Path) -> list[Path]:
    """Objects of sources of our own, for a machine without a build of FreeBSD."""
    directory.mkdir(parents=True)
    compiler = shutil.which("clang") or shutil.which("clang-19") or shutil.which("gcc")
    if compiler is None:
        sys.exit("no C compiler: apt-get install gcc")
    found = []
    for number in range(UNITS):
        file = directory / f"u{number}.c"
        file.write_text(source(number))
        found.append(file.with_suffix(".o"))
        words = [
            "-g",
            "-O2",
            "-ffreestanding",
            "-fno-pic",
            "-mcmodel=kernel",
            "-mno-sse",
            "-w",
            "-c",
            str(file),
            "-o",
            str(found[-1]),
        ]
        subprocess.run([compiler, *words], check=True)
    return found


def link(copies: int, directory: Path) -> Path:
    """Link a kernel.debug from ``copies`` copies of the objects of a kernel in the store. Each copy has its own symbols."""
    from harness import paths
    from harness.xen import symbolizer

    kernels = sorted(paths.store().glob("objects/*/obj/**/sys/*/kernel.full"))
    directory.mkdir(parents=True)
    if kernels:
        objects = sorted(path for path in kernels[0].parent.glob("[!.]*.o") if path.name not in ("genassym.o", "assym.o"))
    else:
        objects = compiled(directory / "1")
    names = [str(path) for path in objects]
    for number in range(2, copies + 1):
        (directory / str(number)).mkdir()
        for path in objects:
            names.append(str(directory / str(number) / path.name))
            subprocess.run(["objcopy", f"--prefix-symbols=copy{number}_", path, names[-1]], check=True)
    (directory / "list").write_text("\n".join(names))
    # Nothing runs it: undefined symbols and the order of the sections do not matter.
    lax = ["-z", "muldefs", "--unresolved-symbols=ignore-all", "--noinhibit-exec", "--image-base=0xffffffff80200000", "-e", "btext"]
    full, debug = directory / "kernel.full", directory / "kernel.debug"
    argv = [symbolizer.program("ld.lld"), "-m", "elf_x86_64", "--build-id=sha1", *lax, "-o", str(full), f"@{directory / 'list'}"]
    subprocess.run(argv, check=True, capture_output=True)
    subprocess.run(["objcopy", "--only-keep-debug", full, debug], check=True)
    return debug


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", nargs="?", type=Path)
    parser.add_argument(
        "--copies", nargs=2, metavar=("N", "DIRECTORY"), help="make a FILE of N kernels in a new DIRECTORY, and use it"
    )
    parser.add_argument("--child", type=int, default=0, help=argparse.SUPPRESS)
    given = parser.parse_args()
    made = link(int(given.copies[0]), Path(given.copies[1]).absolute()) if given.copies else None
    debug = (made or given.file or largest()).absolute()
    if given.child:
        ours(debug, given.child)
        return
    from harness.xen import elfsymbols

    functions = elfsymbols.functions(elfsymbols.mapped(debug))
    assert functions is not None
    addresses = [(functions.address(name) or 0) + int(offset, 16) - 1 for name, offset in frames(debug)]
    found: dict[str, list[Cost]] = {name: [] for name in ("first", "index", "cold", "warm", "addr2line")}
    for _ in range(ROUNDS):
        with tempfile.TemporaryDirectory() as store:
            first, index = measure(debug, Path(store))
            cold, warm = measure(debug, Path(store), 2)
            for name, cost in (
                ("first", first),
                ("index", index),
                ("cold", cold),
                ("warm", warm),
                ("addr2line", addr2line(debug, addresses)),
            ):
                found[name].append(cost)
    print(
        f"{debug}: {debug.stat().st_size / 1e6:.0f} MB, {FRAMES} frames, median of {ROUNDS} rounds, load {os.getloadavg()[0]:.1f}"
    )
    used = {name: statistics.median(cost[1] for cost in rows) for name, rows in found.items()}
    for name, rows in found.items():
        seconds = statistics.median(cost[0] for cost in rows)
        print(
            f"{name:<10} {used[name]:6.3f} s CPU {seconds:9.3f} s   {used[name] / used['addr2line']:5.2f} of addr2line's CPU time"
        )
    missed = [
        f"{name} above {limit:.3f} s"
        for name, limit in (
            ("first", FIRST),
            ("cold", min(COLD, SHARE * used["addr2line"])),
            ("warm", min(WARM, SHARE * used["addr2line"])),
        )
        if used[name] > limit
    ]
    sys.exit("; ".join(missed) if missed else 0)


if __name__ == "__main__":
    main()
