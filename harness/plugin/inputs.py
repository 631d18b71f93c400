# SPDX-License-Identifier: BSD-2-Clause
"""The inputs of a case for reports: the host, and the guest's files with their hashes and the version of a FreeBSD kernel."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path

from harness.digest import known_sha256
from harness.guests import keptdump
from harness.guests.guest import Guest
from harness.guests.source import GuestSource
from harness.hosts.host import XenHost
from harness.images.kernelfile import banner, osreldate_of


def of_host(host: XenHost) -> dict[str, str]:
    """The facts of the host that can change a result."""
    facts = host.facts
    found = {"host": facts.name, "backend": facts.backend, "xen": facts.xen, "dom0": facts.dom0, **dict(facts.builds)}
    if facts.note:
        found["lab"] = facts.note
        found["qemu"] = facts.note.partition(",")[0]
    if facts.quirks:
        found["quirks"] = "; ".join(facts.quirks)
    return found


def of_guest(source: GuestSource, guest: Guest) -> dict[str, str]:
    """The inputs of ``guest``, which was made from ``source``."""
    return of_source(source) | ({"dump device": keptdump.VDEV} if keptdump.target(guest) else {})


def of_source(source: GuestSource) -> dict[str, str]:
    """The inputs of ``source``. The value of a kernel also has its ident and ``__FreeBSD_version``, if known.

    ``kernel.XENA (FreeBSD 13.2-RELEASE XENA, 1302001) sha256:...``. Only the hash identifies a version
    (harness.verdicts.values.revision), so older runs stay comparable.
    """
    found = dict(source.inputs)
    ident = _banner(source.kernel, known_sha256(source.kernel)) if source.kernel is not None else ""
    name, mark, digest = found.get("kernel", "").partition(" sha256:")
    if ident and mark:
        found["kernel"] = f"{name} ({ident}){mark}{digest}"
    return found


@lru_cache(maxsize=64)
def _banner(kernel: Path, digest: str) -> str:
    """``digest`` is the hash of the file: part of the cache key, so that a replaced file is read again."""
    data = kernel.read_bytes()
    name, number = banner(data), osreldate_of(data)
    return f"{name}, {number}" if name and number else name
