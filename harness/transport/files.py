# SPDX-License-Identifier: BSD-2-Clause
"""Copies files by running commands, so that the remote sshd needs no sftp."""

from __future__ import annotations

import gzip
import os
import shlex
import tempfile
from pathlib import Path

from harness.deadline import Deadline
from harness.errors import InfrastructureError, UsageError
from harness.transport import RunsCommands

_COPY_SECONDS = 600.0
# Compress files of more than this many bytes.
_WORTH_PACKING = 1 << 18


class FileCopies(RunsCommands):
    """``put`` and ``get`` by means of ``run``."""

    def put(self, local: Path, remote: str, deadline: Deadline | None = None) -> None:
        """See :class:`harness.transport.Transport`. Copies under a temporary name, checks the size, and renames."""
        try:
            data = local.read_bytes()
        except OSError as exc:
            raise UsageError(f"{local}: {exc.strerror}", hint="give the path of a readable file") from exc
        packed = gzip.compress(data, 1) if len(data) > _WORTH_PACKING else data
        unpack = "cat"
        if len(packed) < len(data) * 0.9:
            data, unpack = packed, "gzip -dc"
        size, q = local.stat().st_size, shlex.quote(remote)
        # dd skips blocks of zeros, so a sparse image stays sparse.
        script = (
            f'{unpack} | dd of={q}.part bs=65536 conv=sparse 2>/dev/null && s=$(wc -c < {q}.part) && [ "$s" -eq {size} ] && mv {q}.part {q} '
            f"|| {{ df -k {q}.part >&2; rm -f {q}.part; exit 1; }}"
        )
        done = self.run(["sh", "-c", script], deadline or Deadline(_COPY_SECONDS), stdin=data, check=False)
        if done.status:
            words = done.stderr.decode("utf-8", "replace").strip()
            raise InfrastructureError(
                f"copying {local} to {self.name}:{remote} failed: {words}", hint="free disk space on the host"
            )

    def get(self, remote: str, local: Path, deadline: Deadline | None = None) -> None:
        """See :class:`harness.transport.Transport`."""
        done = self.run(["sh", "-c", f"gzip -1c < {shlex.quote(remote)}"], deadline or Deadline(_COPY_SECONDS))
        descriptor, temporary = tempfile.mkstemp(dir=local.parent)
        with os.fdopen(descriptor, "wb") as file:
            file.write(gzip.decompress(done.stdout))
        Path(temporary).replace(local)
