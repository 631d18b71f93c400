# SPDX-License-Identifier: BSD-2-Clause
"""The soak's definition of growth: the minimum of a measure over a quarter of the run has increased."""

from __future__ import annotations

from collections import Counter

import pytest
from remote_host import read_holds
from soak import Measure, grown, qemu

LOOPS = Measure("loops", "")
RSS = Measure("rss", "KiB", 0.03, 100)


@pytest.mark.parametrize(
    ("measure", "values", "expected"),
    [
        # The first quarter is a warm-up.
        (LOOPS, [0, 1, 2, 2, 3, 2, 4, 2], ""),
        # A peak is not a leak if the value falls again.
        (LOOPS, [0, 0, 1, 0, 0, 1, 9, 0], ""),
        (LOOPS, [0, 0, 1, 1, 1, 1, 2, 3], "loops grew from 1 to 2, 0 more are allowed"),
        (RSS, [1000, 1000, 2000, 2100, 2200, 2200, 2159, 2300], ""),
        (RSS, [1000, 1000, 2000, 2100, 2200, 2200, 2161, 2300], "rss grew from 2000 to 2161 KiB, 160 more are allowed"),
        # Too few values.
        (LOOPS, [0, 1, 2], ""),
    ],
)
def test_growth(measure: Measure, values: list[float], expected: str) -> None:
    assert grown(measure, values) == expected


SMAPS = """\
7f0000000000-7f0040000000 rw-s 00000000 fe:00 17864   /store/run/lab-1/ram
Size:            1048576 kB
Rss:              200000 kB
VmFlags: rd wr sh mr mw me ms sd
7f0040000000-7f0080000000 rwxp 00000000 00:00 0 
Rss:              100000 kB
7f0080000000-7f0081000000 rw-p 00000000 00:00 0 
Rss:                  70 kB
7f0090000000-7f0091000000 r-xp 00001000 fe:00 99      /usr/bin/qemu-system-x86_64
Rss:                5000 kB
"""


def test_bounded_memory_of_qemu_is_separate_from_the_rest() -> None:
    assert qemu(SMAPS) == {"qemu-ram": 200000, "qemu-code": 100000, "qemu-own": 5070}


def test_growth_names_the_new_items() -> None:
    before = read_holds("loops 0\n- processes /sbin/init\n- processes sleep 1\n- xenstored-fds socket:[12]\n")
    assert before.counts == {"loops": 0, "processes": 2, "xenstored-fds": 1}
    # An item that ended before its name was read does not count.
    after = read_holds("loops 0\n- processes \n- processes sleep 1\n- processes xl create\n- xenstored-fds socket:[99]\n")
    assert after.more_than(before, ("loops", "processes", "xenstored-fds")) == ""
    after = read_holds("loops 0\n- processes sleep 1\n- processes xl create\n- processes /sbin/init\n- xenstored-fds socket:[9]\n")
    growth = after.more_than(before, ("loops", "processes", "xenstored-fds"))
    assert growth == "processes: 2 before, 3 after {'xl create': 1}"
    assert after.named["processes"] == Counter(["sleep 1", "xl create", "/sbin/init"])
