"""What a guest is made of, in words for reports: files with their hashes, and a FreeBSD kernel with the name it gives itself."""

from __future__ import annotations

import re
from functools import lru_cache
from pathlib import Path

from harness.guests.source import GuestSource

# version[] (sys/conf/newvers.sh):  FreeBSD 13.2-RELEASE XENA
# with a git checkout:              FreeBSD 14.1-STABLE stable/14-n269000-0123456789ab GENERIC\n
_VERSION = re.compile(rb"FreeBSD \d+\.\d+-[A-Z][\w.-]*(?: [\w./+-]+)* [\w.-]+(?=\n?\0)")


def of(source: GuestSource) -> dict[str, str]:
    """The source's inputs; a kernel's value holds its ident, too: ``kernel.XENA (FreeBSD 13.2-RELEASE XENA) sha256:...``."""
    found = dict(source.inputs)
    ident = _ident(source.kernel) if source.kernel is not None else ""
    name, mark, digest = found.get("kernel", "").partition(" sha256:")
    if ident and mark:
        found["kernel"] = f"{name} ({ident}){mark}{digest}"
    return found


@lru_cache(maxsize=64)
def _ident(kernel: Path) -> str:
    return ident(kernel.read_bytes())


def ident(kernel: bytes) -> str:
    """The version that a FreeBSD kernel names itself by, with its configuration's ident last; "" for any other file."""
    match = _VERSION.search(kernel)
    return match[0].decode() if match else ""
