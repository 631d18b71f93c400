# SPDX-License-Identifier: BSD-2-Clause
"""Keeps the debugging information of a release's kernel: ``kernel.debug`` of kernel-dbg.txz, compressed, in the store.

:class:`harness.images.debugfile.KernelSymbols` finds it by the kernel's build-id, as it finds that of a kernel built from source.
"""

from __future__ import annotations

import logging
import os
import shutil
import tarfile
from pathlib import Path
from typing import Any

from harness import untar
from harness.errors import BuildError, HarnessError, UsageError
from harness.images import debugfile, dist, entries, fetch
from harness.images.inputs import Input, key_of
from harness.xen import symbolizer
from harness.xen.elfnotes import build_id

log = logging.getLogger("fxh.images")

FILE = "kernel-dbg.txz"
# Raise when the same set gives another file.
_UNPACKER = 1
# kernel.debug of GENERIC has about 100 MB; the set contains also those of all modules.
_MOST_FILE, _MOST_READ = 1 << 30, 4 << 30
_PIECE = 1 << 20


def keep(where: str, kernel: Path) -> None:
    """Put the debugging information of ``kernel`` into the store, from the sets at ``where``, a URL or a directory.

    Fetches nothing if the store has it. A failure is a warning, because the image is complete without it.
    """
    try:
        symbols = debugfile.KernelSymbols(kernel)
        if symbols.debug is None:
            if not symbols.identity:
                raise UsageError("the kernel has no build-id, which its kernel.debug must match")
            symbolizer.prepare(_entry(where, symbols.identity).directory / debugfile.NAME)
    except (HarnessError, OSError) as exc:
        reason = exc.message if isinstance(exc, HarnessError) else str(exc)
        log.warning("backtraces of this kernel will have no source lines: %s; --symbols can name its kernel.debug", reason)


def _entry(where: str, identity: str) -> entries.StoreEntry:
    found = [made for made in dist.parse_manifest(fetch.text(where, "MANIFEST")).values() if made.file == FILE]
    if not found:
        raise UsageError(f"the MANIFEST at {where} has no {FILE}")
    inputs = [
        Input("set kernel_dbg", found[0].sha256, f"{where} ({FILE})"),
        Input("build-id", identity, "the kernel"),
        Input("unpacker", str(_UNPACKER), "harness/images/debugset.py"),
    ]

    def fill(work: Path) -> dict[str, Any]:
        whole = work / "whole"
        extract(fetch.checked(where, FILE, found[0].sha256), whole)
        if (got := build_id(whole)) != identity:
            raise BuildError(f"{FILE} of {where} belongs to another kernel (build-id {got or 'none'}, not {identity})")
        debugfile.compress(whole, work / debugfile.NAME)
        whole.unlink()
        return {"what": f"debug set of {where}", "build_id": identity, "inputs": [vars(item) for item in inputs]}

    return entries.get_or_create("kernels", key_of(*inputs), fill)


def extract(archive: Path, target: Path) -> None:
    """Write the ``kernel.debug`` in a debug set to ``target``, at most 1 GiB; no other member of the archive is written.

    Reads at most 4 GiB of unpacked data. Raises BuildError for a damaged or larger archive, and for one without the file.
    """
    try:
        for member, contents in untar.members(archive, _MOST_READ):
            if contents is not None and os.path.normpath(member.name.lstrip("/")) == str(debugfile.INSTALLED):
                if member.size > _MOST_FILE:
                    raise BuildError(f"{archive.name}: {debugfile.NAME} of {member.size >> 20} MiB is too large")
                with contents, target.open("wb") as file:
                    shutil.copyfileobj(contents, file, _PIECE)
                return
    except tarfile.TarError as exc:
        raise BuildError(f"{archive.name} cannot be unpacked: {exc}", hint="give the sets of a FreeBSD release") from exc
    raise BuildError(f"{archive.name} has no {debugfile.INSTALLED}", hint="give the sets of a FreeBSD release")
