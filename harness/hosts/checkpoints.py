# SPDX-License-Identifier: BSD-2-Clause
"""The checkpoints of a host that can be saved and restored as a whole: hypervisor, dom0 and guests."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Protocol


class HostCheckpoint(Protocol):
    """One checkpoint of a host."""

    @property
    def note(self) -> str:
        """The text that the ``build`` function of the checkpoint returned."""
        ...

    def remove(self) -> None:
        """Delete the checkpoint. Running hosts that were restored from it continue to run."""
        ...


class HostCheckpoints(Protocol):
    """The checkpoints of one host. A checkpoint is built at its first use and restored from then on."""

    @property
    def keeps_translations(self) -> bool:
        """Whether a checkpoint includes an emulator's translated code, so that code which ran before the save runs faster."""
        ...

    def reset(self, files: Sequence[Path] = (), *, private_memory: bool = False) -> None:
        """Restore the idle dom0, without guests and with ``files`` uploaded. No-op if nothing changed since the last reset.

        ``private_memory`` makes a save that follows faster.
        """
        ...

    def forget(self, files: Sequence[Path]) -> None:
        """Delete the checkpoint of the idle dom0 with ``files``, if it exists."""
        ...

    def mark_used(self) -> None:
        """Record that dom0 changes from here on, so that the next :meth:`reset` restores it."""
        ...

    def warm(self, key: str, build: Callable[[], str], what: str = "") -> HostCheckpoint:
        """Restore the warm checkpoint that ``key`` names. If it does not exist, build and save it first.

        ``build`` boots the guest and returns the note. ``what`` describes the checkpoint for the reader of a log.
        """
        ...
