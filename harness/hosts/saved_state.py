# SPDX-License-Identifier: BSD-2-Clause
"""The interface of a host that can be saved and restored as a whole: hypervisor, dom0 and guests."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol


class SavedState(Protocol):
    """One saved state of a host."""

    @property
    def note(self) -> str:
        """The text that was returned by the function that built the state."""
        ...

    def remove(self) -> None:
        """Delete the state. Running hosts that were restored from it continue to run."""
        ...


class SavedStates(Protocol):
    """The saved states of one host. A state is built at its first use and restored from then on."""

    @property
    def keeps_translations(self) -> bool:
        """Whether a saved state includes an emulator's translated code, so that code which ran before the save runs faster."""
        ...

    def reset(self, files: Sequence[Path] = (), *, private_memory: bool = False) -> None:
        """Restore the idle dom0, without guests and with ``files`` uploaded. No-op if nothing changed since the last reset.

        ``private_memory`` makes a save that follows faster.
        """
        ...

    def forget(self, files: Sequence[Path]) -> None:
        """Delete the idle state with ``files``, if it exists."""
        ...

    def mark_used(self) -> None:
        """Record that dom0 changes from here on, so that the next :meth:`reset` restores it."""
        ...

    def warm(self, key: str, build: Callable[[], str], what: str = "") -> SavedState:
        """Restore the state with booted guests that ``key`` names. If it does not exist, build and save it first.

        ``build`` brings the host into the state and returns the note. ``what`` describes the state for the reader of a log.
        """
        ...


@dataclass(frozen=True)
class Access:
    """How a person reaches a host."""

    dom0: str
    """Goes before a command to run it in dom0; empty on this machine."""
    option: str
    """The option by which ``fxh console`` finds the host."""
    directory: str
    """A directory in dom0 for a core file."""
    remove: str = ""
    """The command that removes the whole host, if it exists for this run only."""
