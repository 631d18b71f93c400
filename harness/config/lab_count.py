# SPDX-License-Identifier: BSD-2-Clause
"""The number of labs that this machine can run at the same time."""

from __future__ import annotations

import os
import re
from pathlib import Path

LABS_PER_CPU = 2
"""A lab waits half of the time for timers, of xl and of the cases, and needs no CPU then (bench/throughput.py)."""
LAB_MEMORY = 2048
"""MiB that a busy lab needs: QEMU gives dom0 and the guests 3 GiB, but seldom touches all of it."""


def automatic(meminfo: Path = Path("/proc/meminfo")) -> int:
    """Two labs for each CPU that this process may use, fewer if the available memory does not suffice. At least 1."""
    cpus = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    try:
        available = re.search(r"^MemAvailable: +(\d+) kB", meminfo.read_text(), re.MULTILINE)
    except OSError:  # no Linux
        available = None
    fitting = int(available[1]) // 1024 // LAB_MEMORY if available else cpus
    return max(1, min(LABS_PER_CPU * cpus, fitting))
