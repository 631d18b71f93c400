# SPDX-License-Identifier: BSD-2-Clause
"""The symbols of a kernel or hypervisor: its functions, and the file with its source lines, which has the same build-id.

The store has ``kernel.debug`` next to each kernel that it built, and that of each release whose debug set it fetched. A user can name
other files (:func:`chosen`).
"""

from __future__ import annotations

import functools
import shutil
import subprocess
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from harness import store
from harness.errors import InfrastructureError, UsageError
from harness.images import entries
from harness.xen import elfsymbols, symbolizer
from harness.xen.elfnotes import build_id

NAME = "kernel.debug"
# Where FreeBSD's installer puts kernel-dbg.txz (share/mk/bsd.own.mk, DEBUGDIR).
INSTALLED = Path("usr/lib/debug/boot/kernel") / NAME
FREEBSD, LINUX, XEN = "FreeBSD", "Linux", "Xen"
# Seconds. 100 MB take 5 s of a CPU.
_COMPRESSING = 300.0
_NAME_ONE = "name a kernel.debug, a vmlinux, a xen-syms, or the directory of an unpacked kernel-dbg.txz"
# A symbol that only this kernel has.
_KINDS = {"osreldate": FREEBSD, "start_kernel": LINUX, "__start_xen": XEN}

T = TypeVar("T")


@dataclass(frozen=True)
class KernelSymbols:
    """Names and source lines for the addresses of a running kernel.

    ``kernel`` is its file on this machine. Without one, ``known`` is its build-id, as ``xl info`` prints that of Xen. ``files``
    may hold its debugging information.
    """

    kernel: Path | None = None
    files: tuple[Path, ...] = ()
    known: str = ""

    @property
    def identity(self) -> str:
        """The kernel's build-id in hex, or "". Raises OSError."""
        return self.known or (_once(build_id, self.kernel) if self.kernel is not None else "")

    @property
    def debug(self) -> Path | None:
        """The file with its source lines, or None. Raises OSError for an unreadable kernel."""
        wanted = self.identity
        if not wanted:
            return None
        found = next((path for path in self._candidates() if path.is_file() and _once(build_id, path) == wanted), None)
        if found is not None and found.parent.parent == store.directory("kernels"):
            store.mark_used(found.parent)  # the image with the kernel may be in use without its entry
        return found

    @property
    def functions(self) -> elfsymbols.Functions | None:
        """Its functions, or None without symbols. Raises OSError."""
        own = _once(_functions, self.kernel) if self.kernel is not None else None
        if own is None and (debug := self.debug) is not None:
            own = _once(_functions, debug)
        return own

    def addresses(self, names: Iterable[str]) -> dict[str, int]:
        """The address of each function that exists once. Raises OSError."""
        wanted = list(names)
        files = [*([self.kernel] if self.kernel is not None else []), *([debug] if (debug := self.debug) is not None else [])]
        return (
            next((found for file in files if (found := elfsymbols.addresses_of(elfsymbols.mapped(file), wanted))), {})
            if wanted
            else {}
        )

    def address_of(self, variable: str) -> int | None:
        """The address of a variable; None if the kernel does not have it. Raises OSError."""
        found = None
        if self.kernel is not None:
            found = elfsymbols.address_of(elfsymbols.mapped(self.kernel), variable)
        if found is None and (debug := self.debug) is not None:
            found = elfsymbols.address_of(elfsymbols.mapped(debug), variable)
        return found

    def _candidates(self) -> Iterator[Path]:
        yield from self.files
        if self.kernel is not None:
            yield self.kernel.with_name(NAME)
            if has_lines(self.kernel):
                yield self.kernel
        for _, entry in entries.listing("kernels"):
            yield entry.directory / NAME


def chosen(path: Path) -> tuple[Path, str]:
    """The file with symbols at the user's ``path``, and its kind: :data:`FREEBSD`, :data:`LINUX` or :data:`XEN`.

    ``path`` is a file, or the directory of an unpacked kernel-dbg.txz. Raises UsageError if it cannot be used.
    """
    if not path.exists():
        raise UsageError(f"{path}: no such file or directory", hint=_NAME_ONE)
    file = next((one for one in (path, path / NAME, path / INSTALLED) if one.is_file()), None)
    if file is None:
        raise UsageError(f"{path}: no {NAME} and no {INSTALLED} in it", hint=_NAME_ONE)
    try:
        with file.open("rb") as opened:
            magic = opened.read(4)
        if magic != b"\x7fELF":
            raise UsageError(f"{file}: not an ELF file", hint=_NAME_ONE)
        if not build_id(file):
            raise UsageError(f"{file}: it has no build-id, so its kernel is unknown", hint="link the kernel with --build-id")
        data = elfsymbols.mapped(file)
    except OSError as exc:
        raise UsageError(f"{file}: {exc.strerror}", hint="check its permissions") from exc
    kind = next((kind for symbol, kind in _KINDS.items() if elfsymbols.address_of(data, symbol) is not None), "")
    if not kind and elfsymbols.functions(data) is None:
        raise UsageError(f"{file}: it has no symbols: it is stripped", hint=_NAME_ONE)
    if not kind:
        raise UsageError(f"{file}: neither a FreeBSD kernel nor Linux nor Xen", hint=_NAME_ONE)
    return file, kind


def has_lines(path: Path) -> bool:
    """Whether an ELF file has line tables (DWARF). Raises OSError."""
    return _once(_has_lines, path)


def _functions(path: Path) -> elfsymbols.Functions | None:
    return elfsymbols.functions(elfsymbols.mapped(path))


def _has_lines(path: Path) -> bool:
    return elfsymbols.has_section(elfsymbols.mapped(path), ".debug_line")


def _once(read: Callable[[Path], T], path: Path) -> T:
    """``read(path)``, read again only if the file has changed, because a file has megabytes and each guest of a case needs it."""
    there = path.stat()
    result: T = _cached(read, path, there.st_mtime_ns, there.st_size)
    return result


@functools.lru_cache(maxsize=256)
def _cached(read: Callable[[Path], Any], path: Path, changed: int, size: int) -> Any:
    return read(path)


def compress(debug: Path, target: Path) -> None:
    """Copy ``debug`` to ``target``, with compressed sections if this machine has llvm-objcopy. Raises OSError.

    zstd takes a fifth of zlib's time and nine tenths of its space. LLVM before 15 does not know it, and gdb reads both.
    """
    for method in ("zstd", "zlib"):
        with suppress(InfrastructureError, subprocess.TimeoutExpired):
            argv = [symbolizer.program("llvm-objcopy"), f"--compress-debug-sections={method}", str(debug), str(target)]
            done = subprocess.run(argv, stdin=subprocess.DEVNULL, capture_output=True, check=False, timeout=_COMPRESSING)
            if done.returncode == 0:
                return
    shutil.copyfile(debug, target)
