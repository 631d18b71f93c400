# SPDX-License-Identifier: BSD-2-Clause
"""Finds in the log of a FreeBSD build the lines that explain its failure. These are hardly ever the last lines."""

from __future__ import annotations

import re

# *** [subr_log.o] Error code 1                           (code 6: "stopped because another failed")
_STOPPED = re.compile(r"^\*\*\* \[([^\]]+)\] Error code (\d+)")
# /usr/src/sys/kern/subr_log.c:81:2: error: use of undeclared identifier 'x'      (also fatal error:)
_COMPILER = re.compile(r"^\S+?:\d+:(?:\d+:)? (?:fatal )?error: ")
# ld: error: undefined symbol: foo                        ld.lld: error: ...
# error: invalid value 'c++23' in '-std=c++23'            (clang about its own arguments)
_LINKER = re.compile(r"^(?:(?:\S*ld(?:\.lld)?|\S*clang(?:\+\+)?|cc|gcc): )?error: ")
# These end a build without a line of stars:
#   bmake[2]: bmake[2]: don't know how to make sqlite3.c. Stop
#   config: Error: device "nosuch" is unknown
#   /usr/src/sys/amd64/conf/XENA: unknown option "NOSUCH"
#   config: XENA:11: syntax error
#   bmake[1]: "/usr/src/Makefile.inc1" line 1648: Missing KERNCONF /usr/src/sys/amd64/conf/NONE
#   Cannot find host tool 'xz' in PATH
#   Failed tests: deptgt-interrupt              (bmake's own, when it is bootstrapped)
_ALONE = re.compile(
    r"don't know how to make .*\. Stop|^config: |: unknown option \"|Missing KERNCONF|^Cannot find host tool|^Failed tests: \S"
    r"|^Could not infer value for|No space left on device"
)
_LINES_BEFORE = 3


def causes(log: str, limit: int = 12) -> list[str]:
    """The lines of a log that explain the failure, the first cause first; [] if no line has a known form.

    With -j the output of other jobs comes in between, so a compiler's error is found by its form, not by its position.
    """
    lines = log.splitlines()
    for at, line in enumerate(lines):
        if _ALONE.search(line):
            return _clip([line], limit)
        stopped = _STOPPED.match(line)
        if stopped and stopped[2] != "6":
            errors = [number for number in range(at) if _COMPILER.match(lines[number]) or _LINKER.match(lines[number])]
            if errors:
                # Include the source line and the caret.
                excerpt = [text for number in errors[-_LINES_BEFORE:] for text in lines[number : number + 3] if text != line]
                return _clip([*dict.fromkeys(excerpt), line], limit)
            before = [text for text in lines[max(0, at - _LINES_BEFORE) : at] if text.strip()]
            return _clip([*before, line], limit)
    return []


def _clip(lines: list[str], limit: int) -> list[str]:
    return [line[:300] for line in lines[:limit]]
