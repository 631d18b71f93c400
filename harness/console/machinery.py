# SPDX-License-Identifier: BSD-2-Clause
"""Machinery: kernel functions that only report a fault. The faulting function is their first caller.

Each guest OS has a table for its kernel (:mod:`harness.guests.os`); :data:`COPIES` is common to all. To add a family of functions, add
a row. A test checks that each sample matches its pattern, and that the tables do not match functions of drivers.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True)
class Row:
    """A family of functions. ``pattern`` must match a whole name. ``samples`` are names in backtraces, separated by blanks."""

    what: str
    pattern: str
    samples: str


# Copies, fills and text functions: if one faults, its caller passed a wrong address.
COPIES = (
    Row("copies", r"(?:__)?(?:mem(?:cpy|move|set|cmp|chr|mem)|bcopy|bzero|bcmp|explicit_bzero)(?:_\w+)?|page(?:copy|zero)\w*|sse2_pagezero|ovbcopy",
        "memcpy memcpy_erms memmove_erms memmove_std memset_erms memcmp bcopy bzero __memcpy __memmove pagezero_erms pagecopy"),
    Row("copies to and from programs", r"(?:copy(?:in|out)(?:str|_\w+)?|copyinstr\w*|copystr|copy(?:in|out)uio)"
        r"|(?:fu|su)(?:byte|word\d*|ewor\w*)\w*|casu(?:eword|word)\w*|uiomove\w*|copyout_map|generic_copy\w*|(?:copy|cpy|fsu)_fault\w*|fueword\w*",
        "copyin copyout copyout_nosmap_erms copyin_smap_std copyinstr copyinstr_smap fuword fuword32 subyte casueword32 uiomove "
        "uiomove_faultflag copy_fault fueword64"),
    Row("copies of mbufs", r"m_(?:copy\w+|append|cat|dup|pullup|adj)", "m_copydata m_copyback m_copym m_copypacket m_append m_pullup m_adj"),
    Row("text", r"str(?:n?len|n?cmp|s?n?cpy|n?cat|lcpy|lcat|n?casecmp|r?chr|n?str|sep|n?dup|spn|cspn|to\w+)(?:_\w+)?|r?index"
        r"|_?k?v?(?:s|sn|f|u)?n?r?printf\w*|vlog|putchar",
        "strlen strcmp strncmp strlcpy strcpy strchr strsep strdup index kvprintf vprintf printf snprintf vsnprintf _vprintf sprintf"),
)  # fmt: skip

# Suffixes that compilers add to parts and copies of a function: xyz_poll.isra.0, xyz_poll.cold
_COPY = re.compile(r"(?:\.(?:isra|constprop|part|cold|llvm|lto_priv)(?:\.\d+)*)+$")
# Position-independent copies of Linux's functions: __pi_memcpy (arm64, and x86 since 6.15)
_POSITION_INDEPENDENT = "__pi_"


def base(function: str) -> str:
    """The name of a function in its source, without the suffix of a compiler and the prefix of a build."""
    return _COPY.sub("", function).removeprefix(_POSITION_INDEPENDENT)


class Machinery:
    """A set of function names: those that match a row of ``rows`` or of :data:`COPIES`."""

    def __init__(self, rows: Iterable[Row] = ()) -> None:
        self.rows = (*rows, *COPIES)
        self._pattern = re.compile("|".join(f"(?:{row.pattern})" for row in self.rows))

    def __contains__(self, function: str) -> bool:
        return self._pattern.fullmatch(base(function)) is not None
