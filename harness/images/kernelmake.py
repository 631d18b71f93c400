# SPDX-License-Identifier: BSD-2-Clause
"""Runs the make of a kernel's object directory again, without the makes before it.

``make buildkernel`` runs four makes (Makefile.inc1). The first three choose tools and prepare directories. They take as long as an
edited file and the link. The last one compiles. :class:`Recorder` stands between the makes and keeps how the last one was called.
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
from dataclasses import dataclass
from pathlib import Path

# -j 2 -D KERNFAST -J 15,16 CONF_CFLAGS=-ffile-prefix-map=/usr/src=/a\\ -fno-builtin MAKE=/store/objects/4f/make
_FLAG = re.compile(r"(?:\\.|[^\s\\])+")
_SCRIPT = """\
#!/bin/sh
# Keeps how the make of a kernel's object directory is called, then calls it.
case " $* " in
*" KERNEL=kernel all "*)
	rm -rf {part} {record}
	mkdir -p {part} && env -0 > {part}/environment && pwd > {part}/directory && printf '%s\\0' "$@" > {part}/arguments &&
		mv {part} {record}
	;;
esac
exec {make} "$@"
"""


@dataclass(frozen=True)
class Call:
    """A call of make: its arguments without the program, directory and environment."""

    arguments: tuple[str, ...]
    directory: Path
    environment: dict[str, str]


@dataclass(frozen=True)
class Recorder:
    """The record of one kernel's make in ``directory``. ``make`` is the program."""

    directory: Path
    make: Path

    def script(self) -> Path:
        """A program that records the call and runs ``make``: give it as ``MAKE`` to ``make buildkernel``."""
        self.directory.mkdir(parents=True, exist_ok=True)
        quoted = {"make": self.make, "part": self.directory / "part", "record": self.directory / "call"}
        path = self.directory / "make"
        path.write_text(_SCRIPT.format(**{name: shlex.quote(str(value)) for name, value in quoted.items()}))
        path.chmod(0o755)
        return path

    def call(self, jobs: int) -> Call | None:
        """The recorded call, with ``jobs`` jobs; None without a complete record."""
        record = self.directory / "call"
        try:
            words = [os.fsdecode(word) for word in (record / "arguments").read_bytes().split(b"\0")[:-1]]
            lines = [os.fsdecode(line) for line in (record / "environment").read_bytes().split(b"\0")[:-1]]
            directory = Path((record / "directory").read_text().removesuffix("\n"))
        except OSError:
            return None
        script = str(self.directory / "make")
        environment = {
            name: str(self.make) if value == script else value for name, _, value in (line.partition("=") for line in lines)
        }
        flags = [word for word in _FLAG.findall(environment.get("MAKEFLAGS", "")) if not word.startswith("MAKE=")]
        environment["MAKEFLAGS"] = " ".join(_with_jobs(flags, jobs))
        return Call(tuple(_with_jobs(words, jobs)), directory, environment)

    def forget(self) -> None:
        shutil.rmtree(self.directory, ignore_errors=True)


def _with_jobs(words: list[str], jobs: int) -> list[str]:
    """The words with ``jobs`` jobs, and without the descriptors of a job server, which ended with its make."""
    joined, waiting = [], iter(words)
    for word in waiting:
        if word == "-J":
            next(waiting, "")
        elif word == "-j":
            next(waiting, "")
            joined += [word, str(jobs)]
        else:
            joined.append(word)
    return joined
