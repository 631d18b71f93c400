# SPDX-License-Identifier: BSD-2-Clause
"""Precompile the headers that almost every file of Linux includes, so that its build reads them once.

gcc uses a precompiled header only with the options that it was made with; it reads the plain headers for all other files (boot code,
vDSO).
"""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path

from harness.lab import tools

# kbuild includes these first in each file. gcc finds <name>.gch next to a header, but it looks only for that of the very first one.
_FIRST = ("include/linux/compiler-version.h", "include/linux/kconfig.h", "include/linux/compiler_types.h")
_HEADERS = (
    "linux/compiler-version.h", "linux/kconfig.h", "linux/compiler_types.h", "linux/module.h", "linux/kernel.h", "linux/sched.h",
    "linux/sched/signal.h", "linux/mm.h", "linux/fs.h", "linux/slab.h", "linux/uaccess.h", "linux/interrupt.h", "linux/device.h", "linux/seq_file.h", "linux/proc_fs.h",
    "linux/blkdev.h", "linux/skbuff.h", "linux/netdevice.h",
)  # fmt: skip
# A small file, which is compiled for its options.
_SAMPLE = "init/calibrate"


def compiler(code: bytes, work: Path) -> Path:
    """The compiler of the kernel, from the ``code`` of images/dom0/kernel_cc.c."""
    source, target = work / "kernel_cc.c", work / "kernel_cc"
    source.write_bytes(code)
    tools.run(["cc", "-O2", "-Wall", "-Werror", "-o", str(target), str(source)], work)
    return target


def make(source: Path, work: Path, arguments: Sequence[str], env: Mapping[str, str]) -> None:
    """Precompile the headers of the configured ``source``. ``arguments`` and ``env`` are those of its make."""
    tools.run(["make", *arguments, "prepare", f"{_SAMPLE}.o"], work, cwd=source, env=env)
    header = work / "precompiled.h"
    header.write_text("".join(f"#include <{name}>\n" for name in _HEADERS))
    directory, _, name = _SAMPLE.rpartition("/")
    options = options_of((source / directory / f".{name}.o.cmd").read_text())
    tools.run(["gcc", *options, "-x", "c-header", "-o", f"{_FIRST[0]}.gch", str(header)], work, cwd=source)


def options_of(command_file: str) -> list[str]:
    """The options of the compiler in a file that kbuild writes for each object, without those of the object itself."""
    # savedcmd_init/calibrate.o := /path/kernel_cc -Wp,-MMD,init/.calibrate.o.d -nostdinc ... -c -o init/calibrate.o init/calibrate.c
    words = shlex.split(command_file.splitlines()[0].partition(":=")[2].partition(" ; ")[0])[1:]
    found: list[str] = []
    for word, before in zip(words, ["", *words], strict=False):
        own = (
            word.startswith(("-Wp,-MMD", "-DKBUILD_", "-D__KBUILD_"))
            or word in ("-c", "-o")
            or before == "-o"
            or word.endswith(".c")
        )
        if own or (before == "-include" and word.endswith(_FIRST)):
            if found and found[-1] == "-include":
                found.pop()
            continue
        found.append(word)
    return found
