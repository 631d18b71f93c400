# SPDX-License-Identifier: BSD-2-Clause
"""Start builds before the first case needs them. Each runs in a process that ends with this one (:mod:`harness.lab.job`)."""

from __future__ import annotations

import logging
import subprocess
import sys
import threading

from filelock import Timeout

from harness import store
from harness.lab import build, kernel
from harness.lab.recipe import Recipe

_begun: set[str] = set()


def begin_image(recipe: Recipe) -> None:
    """Start to build a lab of Debian's packages, unless the store has it or it is being built. :func:`build.build` waits for it."""
    if recipe.hypervisor is None and recipe.dom0_kernel is None and build.find(recipe) is None:
        _begin("image", "labs", recipe.xen, recipe.key, build.log)


def begin_kernel(recipe: Recipe) -> None:
    """Start to build the control guest's kernel, as :func:`begin_image`. A failure is reported by :func:`kernel.obtain`."""
    made = recipe.control_kernel
    if not kernel.available(made):
        _begin("kernel", "control", recipe.xen, made.key, kernel.log)


def _begin(what: str, kind: str, xen: str, key: str, log: logging.Logger) -> None:
    if key in _begun:
        return
    _begun.add(key)
    try:
        store.lock(store.directory(kind) / key, timeout=0).acquire().lock.release()
    except Timeout:  # another process builds it
        return
    argv = [sys.executable, "-m", "harness.lab.job", what, xen, key]
    process = subprocess.Popen(
        argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, start_new_session=True
    )

    def forward() -> None:
        for line in process.stdout or ():
            log.info("%s", line.decode(errors="replace").rstrip())
        process.wait()

    threading.Thread(target=forward, name=f"progress of {key}", daemon=True).start()
