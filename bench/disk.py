# SPDX-License-Identifier: BSD-2-Clause
"""A disk alone against the same kernel given with it: seconds to the first line on the guest's console. By hand:

    python bench/disk.py --disk FreeBSD.raw --kernel kernel --root gpt/rootfs

The two sides boot in turn, each boot in a fresh lab. The bound is 1.5 times; a missed bound gives exit code 1. The script also
prints the first boot with the disk alone, which has to read the disk: the store holds nothing of it yet.
"""

from __future__ import annotations

import argparse
import statistics
import sys

from first_line import first_line

BOUND = 1.5


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--disk", required=True)
    parser.add_argument("--kernel", required=True)
    parser.add_argument("--root", required=True)
    parser.add_argument("--times", type=int, default=3)
    given = parser.parse_args()
    alone = ["--type", "pvh", "--disk", given.disk]
    both = [*alone, "--kernel", given.kernel, "--root", given.root]
    first_line(*both)  # Prepares the lab.
    print(f"disk alone, first boot: {first_line(*alone):.1f} s")
    took: dict[str, list[float]] = {"alone": [], "both": []}
    for _ in range(given.times):
        took["alone"].append(first_line(*alone))
        took["both"].append(first_line(*both))
    middle = {side: statistics.median(seconds) for side, seconds in took.items()}
    ratio = middle["alone"] / middle["both"]
    print(
        f"disk alone {middle['alone']:.1f} s, with its kernel given {middle['both']:.1f} s: {ratio:.2f} (medians of {given.times})"
    )
    return int(ratio > BOUND)


if __name__ == "__main__":
    sys.exit(main())
