# SPDX-License-Identifier: BSD-2-Clause
"""Program for dom0: record the user and the root directory of each pygrub that starts while it runs.

It prints ``recording``. After the first byte or the end of stdin it prints a line ``UID DIRECTORY`` for each different pair. They
are the effective uid, and the directory that the process uses as ``/``.

One process checks every 20 ms all processes that started after it. Under emulation, a tool for each check would take longer to
start.
"""

from __future__ import annotations

import os
import select

INTERVAL = 0.02
"""Seconds between two checks."""


def identity(pid: str) -> tuple[str, str] | None:
    """The (uid, root directory) of a process that is a pygrub, else None. Raises OSError if the process has ended."""
    with open("/proc/%s/cmdline" % pid, "rb") as file:
        words = file.read().split(b"\0")
    # [env] python3 /usr/lib/xen-4.17/bin/pygrub ...
    if not any(word.endswith(b"/pygrub") for word in words[:3]):
        return None
    with open("/proc/%s/status" % pid) as file:
        # Uid:    0    131079    131079    131079
        uids = [line.split()[2] for line in file if line.startswith("Uid:")]
    return (uids[0], os.readlink("/proc/%s/root" % pid)) if uids else None


def main() -> None:
    seen, before = set(), set(os.listdir("/proc"))
    print("recording", flush=True)
    while not select.select([0], [], [], INTERVAL)[0]:
        for pid in set(filter(str.isdigit, os.listdir("/proc"))) - before:
            try:
                found = identity(pid)
            except OSError:
                continue
            if found:
                seen.add(found)
    for uid, root in sorted(seen):
        print(uid, root)


if __name__ == "__main__":
    main()
