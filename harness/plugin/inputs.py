"""What a guest is made of, in words for reports: files with their hashes, and a FreeBSD kernel with the name it gives itself."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path

from harness.guests.source import GuestSource
from harness.images.kernelfile import banner


def of(source: GuestSource) -> dict[str, str]:
    """The source's inputs; a kernel's value holds its ident, too: ``kernel.XENA (FreeBSD 13.2-RELEASE XENA) sha256:...``."""
    found = dict(source.inputs)
    ident = _banner(source.kernel) if source.kernel is not None else ""
    name, mark, digest = found.get("kernel", "").partition(" sha256:")
    if ident and mark:
        found["kernel"] = f"{name} ({ident}){mark}{digest}"
    return found


@lru_cache(maxsize=64)
def _banner(kernel: Path) -> str:
    return banner(kernel.read_bytes())
