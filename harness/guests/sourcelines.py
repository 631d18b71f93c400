# SPDX-License-Identifier: BSD-2-Clause
"""The backtrace of a dead guest with source files and lines."""

from __future__ import annotations

import itertools
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
    stacks = [_numbered(frames) for frames in traces]
    addresses = [[_address(frame, starts) for _, frame in stack] for stack in stacks]
    known = [address for stack in addresses for address in stack if address is not None]
    places = iter(symbolizer.lookup(debug, known, seconds))
    return [
        [line for (number, frame), address in zip(stack, found, strict=True)
         for line in _lines(number, frame, next(places) if address is not None else ())]
        for stack, found in zip(stacks, addresses, strict=True)
    ]  # fmt: skip


def names(frames: Sequence[Frame]) -> list[str]:
    """Lines of text: each frame with the name and offset that it was printed with, or its address."""
    return [_name(number, frame) for number, frame in _numbered(frames)]


def _numbered(frames: Sequence[Frame]) -> list[tuple[str, Frame]]:
    """Each frame with its number. Equal frames that follow each other are one entry: a recursion fills a stack with hundreds."""
    found, number = [], 0
    for frame, equal in itertools.groupby(frames):
        last = number + len(list(equal)) - 1
        found.append((f"#{number}" if last == number else f"#{number}-{last}", frame))
        number = last + 1
    return found


def _name(number: str, frame: Frame) -> str:
    return plain(f"{number:<3} {frame.name}" + (f"+{frame.offset}" if frame.function and frame.offset else ""))


def _lines(number: str, frame: Frame, found: symbolizer.Lines) -> list[str]:
    if not found:
        return [_name(number, frame)]
    *inlined, outer = found
    last = plain(f"{number:<3} {outer}") if outer.file or not frame.function else _name(number, frame)
    return [*(plain(f"{number:<3} {one}  [inlined]") for one in inlined), last]


def _address(frame: Frame, starts: Mapping[str, int]) -> int | None:
    """The address of the instruction of a frame. A return address is that of the instruction after the call."""
    if not frame.before and frame.function in starts:
        # Offset 0 is an entry point: the frame of a trap at a function's first instruction.
        offset = int(frame.offset or "0", 16)
        return starts[frame.function] + offset - (1 if offset and not frame.exact else 0)
    return int(frame.address, 16) - (not frame.exact) if frame.address else None
