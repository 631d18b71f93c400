# SPDX-License-Identifier: BSD-2-Clause
"""Comparison of files in a disk image with the files at the same paths in the running guest."""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping

from harness.guests.os.values import Run

# 5891b5b522d5df086d0ff0b110fbd9d21bb4fc7163af34d08286a2e846f6be03 /etc/fstab       (sha256 -r, sbin/md5/md5.c)
_LINE = re.compile(r"^([0-9a-f]{64}) (/\S.*)$", re.MULTILINE)


def parse(text: str) -> dict[str, str]:
    """The hashes of ``sha256 -r FILE...`` by path."""
    return {path.rstrip(): digest for digest, path in _LINE.findall(text)}


def differing(run: Run, wanted: Mapping[str, str]) -> list[str]:
    """The differences between the guest's files and ``wanted`` (sha256 by path), a line each."""
    if not wanted:
        return []
    seen = parse(run(f"sha256 -r {' '.join(map(shlex.quote, wanted))} 2>/dev/null; true"))
    return [
        f"{path}: {f'sha256 {seen[path]}' if path in seen else 'no such file'} in the guest, sha256 {digest} on the disk image"
        for path, digest in wanted.items()
        if seen.get(path) != digest
    ]
