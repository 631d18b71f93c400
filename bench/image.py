# SPDX-License-Identifier: BSD-2-Clause
"""Two builds of FreeBSD images, this checkout's and another revision's, in turn on the same tree. By hand:

    python bench/image.py --src /usr/src --against c9e930c [--base IMAGE] [--other-store DIR] [--boot]

edit       one file of sys/dev/xen is edited, then `fxh image build` makes a bootable image; at most half the other's time
unchanged  the same command again; at most 2 s
console    with --boot: from the edit to the first line on the console of a PVH guest; at most 0.4 times the other's time

The command is `fxh image build NAME --src TREE`, with --base also `--base IMAGE`: an image of the store with the world of that tree.
Both revisions build once before anything is timed. The other revision keeps its worlds and objects in DIR, which makes a second
bench faster; the default is a temporary directory. With --base both use one store.
The edit is a constant at the end of a file, so that the kernel and the image change. The file is put back afterwards. Exit code 1
when a bound is missed.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from first_line import first_line

PROJECT = Path(__file__).resolve().parent.parent
EDITED = "sys/dev/xen/blkfront/blkfront.c"
EDIT_BOUND, UNCHANGED_BOUND, CONSOLE_BOUND = 0.5, 2.0, 0.4


def environment(checkout: Path, given: argparse.Namespace) -> dict[str, str]:
    """The environment of fxh of ``checkout``, with its store."""
    own = {"FXH_STORE": given.other_store} if checkout != PROJECT and not given.base else {}
    return {**os.environ, "PYTHONPATH": str(checkout), **own}


def build(checkout: Path, given: argparse.Namespace) -> float:
    """Seconds that `fxh image build` of ``checkout`` takes. Raises SystemExit when it fails."""
    argv = [sys.executable, "-m", "harness.cli", "image", "build", "bench", "--src", given.src]
    argv += ["--base", given.base] if given.base else []
    begun = time.monotonic()
    done = subprocess.run(
        argv, cwd=checkout, env=environment(checkout, given), stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise SystemExit(f"{checkout}: {done.stdout[-1000:]}{done.stderr[-2000:]}")
    return time.monotonic() - begun


def boot(checkout: Path, given: argparse.Namespace) -> float:
    """Seconds to the first line of a guest with the image."""
    return first_line("--image", "bench", "--type", "pvh", cwd=checkout, environment=environment(checkout, given))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--src", required=True)
    parser.add_argument("--base", default="")
    parser.add_argument("--against", required=True)
    parser.add_argument("--other-store", default="")
    parser.add_argument("--boot", action="store_true")
    parser.add_argument("--times", type=int, default=3)
    given = parser.parse_args()
    rows = ("edit", "unchanged", *(["console"] if given.boot else []))
    took: dict[str, dict[str, list[float]]] = {row: {"this": [], "other": []} for row in rows}
    edited = Path(given.src) / EDITED
    before = edited.read_bytes()
    with tempfile.TemporaryDirectory(prefix="fxh-bench-") as directory:
        other = Path(directory) / "other"
        given.other_store = given.other_store or str(Path(directory) / "store")
        subprocess.run(
            ["git", "worktree", "add", "--detach", str(other), given.against], cwd=PROJECT, check=True, capture_output=True
        )
        sides = {"this": PROJECT, "other": other}
        try:
            for checkout in sides.values():
                build(checkout, given)
                if given.boot:  # Builds the lab.
                    boot(checkout, given)
            for number in range(given.times):
                for side, checkout in sides.items():
                    edit = f'const char fxh_bench_edit[] = "{number} {side} {os.getpid()}";\n'
                    edited.write_bytes(before + edit.encode())
                    took["edit"][side].append(build(checkout, given))
                    if given.boot:
                        took["console"][side].append(took["edit"][side][-1] + boot(checkout, given))
                    took["unchanged"][side].append(build(checkout, given))
        finally:
            edited.write_bytes(before)
            subprocess.run(["git", "worktree", "remove", "--force", str(other)], cwd=PROJECT, check=False, capture_output=True)
    print(f"{'':<10} {'this':>8} {given.against[:10]:>10}  ratio   (medians of {given.times}, seconds)")
    middle = {what: {side: statistics.median(seconds) for side, seconds in sides.items()} for what, sides in took.items()}
    for what, sides in middle.items():
        print(f"{what:<10} {sides['this']:>8.2f} {sides['other']:>10.2f}  {sides['this'] / sides['other']:.2f}")
    missed = middle["edit"]["this"] > EDIT_BOUND * middle["edit"]["other"] or middle["unchanged"]["this"] > UNCHANGED_BOUND
    if given.boot:
        missed |= middle["console"]["this"] > CONSOLE_BOUND * middle["console"]["other"]
    return int(missed)


if __name__ == "__main__":
    sys.exit(main())
