# SPDX-License-Identifier: BSD-2-Clause
"""The checkpoints of a lab that the suites use: :class:`harness.hosts.checkpoints.HostCheckpoints`."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from harness.digest import known_sha256
from harness.dom0 import xenstore_recorder
from harness.hosts.direct import PREFIX
from harness.lab import prune
from harness.lab.checkpoint import Checkpoint, CheckpointKind
from harness.xen.dom0_program import bundle

if TYPE_CHECKING:
    from harness.lab.host import LabHost


class SuiteCheckpoints:
    """The idle and the warm checkpoints of ``host``'s lab."""

    def __init__(self, host: LabHost) -> None:
        self._host = host
        self._unchanged: str | None = None
        """The key of the idle checkpoint that the lab was restored from and has not changed since."""

    @property
    def keeps_translations(self) -> bool:
        return self._host.lab.checkpoints.hot

    def reset(self, files: Sequence[Path] = (), *, private_memory: bool = False) -> None:
        """Restore the idle dom0 with ``files``, unless nothing changed since the last reset.

        Under emulation it takes two to four seconds to upload the control guest's files, and half a second to start the recorder of
        xenstore. So they are part of a checkpoint.
        """
        host, key = self._host, _rest_key(files)
        if self._unchanged == key:
            return
        self._unchanged = None

        def build() -> str:
            host.restore_idle(private_memory=True)
            host.record_xenstore(f"{PREFIX}-")
            if files:
                host.files(*files)
                host.transport.run(["rm", "-r", host.directory])
            return "dom0 idle, with the files of a guest"

        host.get_or_create(CheckpointKind.REST, key, build, private_memory=private_memory)
        self._unchanged = key

    def forget(self, files: Sequence[Path]) -> None:
        found = self._host.lab.checkpoints.find(CheckpointKind.REST, _rest_key(files))
        if found is not None:
            found.remove()

    def mark_used(self) -> None:
        self._unchanged = None

    def warm(self, key: str, build: Callable[[], str], what: str = "") -> Checkpoint:
        def build_and_prune() -> str:
            self.mark_used()  # an earlier attempt used the idle dom0
            note = build()
            prune.bound()
            return note

        self.mark_used()
        try:
            # Not exclusive: if a kernel fails to boot, workers would wait for each other's boots, one after the other.
            return self._host.get_or_create(CheckpointKind.WARM, key, build_and_prune, exclusive=False, what=what)
        finally:
            self.mark_used()  # `build` may have called reset()


def _rest_key(files: Sequence[Path]) -> str:
    return key_of(hashlib.sha256(bundle(xenstore_recorder)).hexdigest(), *map(known_sha256, files))


def key_of(*parts: str) -> str:
    """A short hash of ``parts``, for the name of a checkpoint that depends on all of them."""
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:12]
