# SPDX-License-Identifier: BSD-2-Clause
"""The backtrace of a dead guest with source files and lines."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from harness.console.backtrace import Frame
from harness.images.debugfile import KernelSymbols
from harness.safetext import plain
from harness.xen import symbolizer


def backtrace(frames: Sequence[Frame], symbols: KernelSymbols, *, seconds: float = 60.0) -> list[str]:
    """Lines of text: each frame with its function, file and line, and the callers that the compiler inlined.

    The list is empty if there are no frames or no debugging information. Raises InfrastructureError if LLVM's tools are missing,
    OSError for an unreadable kernel.
    """
    return backtraces([frames], symbols, seconds=seconds)[0]


def backtraces(traces: Sequence[Sequence[Frame]], symbols: KernelSymbols, *, seconds: float = 60.0) -> list[list[str]]:
    """As :func:`backtrace` for several traces, with one call of LLVM's tools."""
    debug = symbols.debug if any(traces) else None
    if debug is None:
        return [[] for _ in traces]
    starts = symbols.addresses({frame.function for frames in traces for frame in frames if frame.function and not frame.before})
    addresses = [[_address(frame, starts) for frame in frames] for frames in traces]
    known = [address for trace in addresses for address in trace if address is not None]
    places = iter(symbolizer.lookup(debug, known, seconds))
    return [
        [line for number, (frame, address) in enumerate(zip(frames, trace, strict=True))
         for line in _lines(number, frame, next(places) if address is not None else ())]
        for frames, trace in zip(traces, addresses, strict=True)
    ]  # fmt: skip


def names(frames: Sequence[Frame]) -> list[str]:
    """Lines of text: each frame with the name and offset that it was printed with, or its address."""
    return [_name(number, frame) for number, frame in enumerate(frames)]


def _name(number: int, frame: Frame) -> str:
    return plain(f"#{number:<2} {frame.name}" + (f"+{frame.offset}" if frame.function and frame.offset else ""))


def _lines(number: int, frame: Frame, found: symbolizer.Lines) -> list[str]:
    if not found:
        return [_name(number, frame)]
    *inlined, outer = found
    last = plain(f"#{number:<2} {outer}") if outer.file or not frame.function else _name(number, frame)
    return [*(plain(f"#{number:<2} {one}  [inlined]") for one in inlined), last]


def _address(frame: Frame, starts: Mapping[str, int]) -> int | None:
    """The address of the instruction of a frame. A return address is that of the instruction after the call."""
    if not frame.before and frame.function in starts:
        # Offset 0 is an entry point: the frame of a trap at a function's first instruction.
        offset = int(frame.offset or "0", 16)
        return starts[frame.function] + offset - (1 if offset and not frame.exact else 0)
    return int(frame.address, 16) - (not frame.exact) if frame.address else None
