# SPDX-License-Identifier: BSD-2-Clause
"""Shrinks a failing sequence to a short one that still fails (delta debugging).

Source: A. Zeller, R. Hildebrandt, Simplifying and Isolating Failure-Inducing Input, IEEE TSE 28(2), 2002: the algorithm ddmin.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

T = TypeVar("T")

Attempt = Callable[[tuple[T, ...]], int]
"""Tries a sequence. Returns after how many of its items it failed in the same way; 0 if it did not."""


@dataclass(frozen=True)
class Shrunk(Generic[T]):
    """The shortest failing sequence that was found. ``complete``: no single item can be left out, as far as the attempts tell."""

    items: tuple[T, ...]
    tries: int
    complete: bool


class _Spent(Exception):
    """The attempts are used up."""


class _Attempts(Generic[T]):
    """Counts attempts and remembers the sequences that did not fail."""

    def __init__(self, attempt: Attempt[T], most: int, more: Callable[[], bool]) -> None:
        self.tries = 0
        self._attempt, self._most, self._more = attempt, most, more
        self._passed: set[tuple[T, ...]] = set()

    def __call__(self, items: tuple[T, ...]) -> tuple[T, ...]:
        """The part of ``items`` that fails, or (). Raises _Spent."""
        if not items or items in self._passed:
            return ()
        if self.tries >= self._most or not self._more():
            raise _Spent
        self.tries += 1
        failed = self._attempt(items)
        if not failed:
            self._passed.add(items)
        return items[:failed]


def shrink(
    failing: Sequence[T],
    attempt: Attempt[T],
    most: int,
    *,
    candidates: Iterable[tuple[T, ...]] = (),
    repair: Callable[[tuple[T, ...]], tuple[T, ...]] = lambda items: items,
    more: Callable[[], bool] = lambda: True,
) -> Shrunk[T]:
    """Shrink ``failing`` with at most ``most`` attempts, as long as ``more`` allows another one.

    ``candidates`` are short sequences to try first, in their order; the first one that fails is shrunk further. ``repair`` makes a
    subsequence possible, by leaving out more items.
    """
    found, tried = tuple(failing), _Attempts(attempt, most, more)
    try:
        for candidate in candidates:
            if len(candidate) < len(found) and (part := tried(candidate)):
                found = part
                break
        pieces = 2
        while len(found) > 1:
            size = -(-len(found) // pieces)
            parts = [found[at : at + size] for at in range(0, len(found), size)]
            subsets = parts if pieces == 2 else []
            complements = [tuple(item for other in parts[:n] + parts[n + 1 :] for item in other) for n in range(len(parts))]
            for choice in (*subsets, *complements):
                repaired = repair(choice)
                if len(repaired) < len(found) and (part := tried(repaired)):
                    found, pieces = part, max(2, pieces - 1)
                    break
            else:
                if size == 1:
                    break
                pieces = min(len(found), 2 * pieces)
    except _Spent:
        return Shrunk(found, tried.tries, complete=False)
    return Shrunk(found, tried.tries, complete=True)
