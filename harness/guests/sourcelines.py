# SPDX-License-Identifier: BSD-2-Clause
"""The backtrace of a dead guest with source files and lines."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from harness.console.backtrace import Frame
from harness.images import debugfile
from harness.safetext import plain
from harness.xen import elfsymbols, symbolizer


def backtrace(frames: Sequence[Frame], kernel: Path, given: Sequence[Path] = (), *, seconds: float = 60.0) -> list[str]:
    """Lines of text: each frame with its function, file and line, and the callers that the compiler inlined.

    ``given`` are files or directories with debugging information, see :func:`harness.images.debugfile.find`. The list is empty
    if there are no frames or no debugging information. Raises UsageError for symbols of another build, InfrastructureError if
    llvm-symbolizer is missing.
    """
    debug = debugfile.find(kernel, given) if frames else None
    if debug is None:
        return []
    symbols = elfsymbols.functions(kernel.read_bytes())
    addresses = [_address(frame, symbols) for frame in frames]
    known = [address for address in addresses if address is not None]
    places = iter(symbolizer.lookup(debug, known, seconds))
    lines = []
    for number, (frame, address) in enumerate(zip(frames, addresses, strict=True)):
        found = next(places) if address is not None else ()
        name = frame.name + (f"+{frame.offset}" if frame.function and frame.offset else "")
        if not found:
            lines.append(plain(f"#{number:<2} {name}"))
            continue
        *inlined, outer = found
        lines += [plain(f"#{number:<2} {one}  [inlined]") for one in inlined]
        lines.append(plain(f"#{number:<2} {outer}" if outer.file else f"#{number:<2} {name}"))
    return lines


def _address(frame: Frame, symbols: elfsymbols.Functions | None) -> int | None:
    """The address of the instruction of a frame: a return address names the one after its call."""
    if frame.function and symbols is not None and not frame.before:
        start = symbols.address(frame.function)
        if start is not None:
            # Offset 0 is an entry point: the frame of a trap at a function's first instruction.
            offset = int(frame.offset or "0", 16)
            return start + offset - (1 if offset and not frame.exact else 0)
    return int(frame.address, 16) - (not frame.exact) if frame.address else None
