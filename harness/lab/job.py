# SPDX-License-Identifier: BSD-2-Clause
"""Build a lab or the control guest's kernel in a separate process: ``python -m harness.lab.job image|kernel XEN KEY``.

It prints its progress, and ends with the process that holds its standard input. :mod:`harness.lab.background` starts it.
"""

from __future__ import annotations

import logging
import os
import signal
import sys
import threading
import time

from harness.errors import HarnessError
from harness.lab import build, kernel, recipe

# A lab must boot and cases must run while the kernel is built. On idle CPUs the build is as fast as without this.
_NICE = 10
# Seconds for the programs of a build to remove their mounts and files.
_GRACE = 10.0


def main() -> int:
    what, xen, key = sys.argv[1:]
    # A handler, unlike SIG_IGN, is not inherited by the programs of the build.
    signal.signal(signal.SIGTERM, lambda *_: None)
    threading.Thread(target=_end_with_owner, daemon=True).start()
    logging.basicConfig(stream=sys.stdout, level=logging.WARNING, format="%(message)s")
    for log in (build.log, kernel.log):
        log.setLevel(logging.INFO)
    found = recipe.load(xen)
    try:
        # An edit of the recipe affects only the next run.
        if what == "image" and found.key == key:
            build.build(found)
        elif what == "kernel" and found.control_kernel.key == key:
            os.nice(_NICE)
            kernel.obtain(found.control_kernel)
    except HarnessError as exc:
        print(exc.message, flush=True)
        return 1
    return 0


def _end_with_owner() -> None:
    sys.stdin.buffer.read()
    os.killpg(os.getpid(), signal.SIGTERM)
    time.sleep(_GRACE)
    os.killpg(os.getpid(), signal.SIGKILL)


if __name__ == "__main__":
    sys.exit(main())
