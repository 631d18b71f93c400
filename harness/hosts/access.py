# SPDX-License-Identifier: BSD-2-Clause
"""How a person reaches a host."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Access:
    """A command, an option and a directory, for the messages of a pause and of a kept guest."""

    dom0: str
    """Goes before a command to run it in dom0; empty on this machine."""
    option: str
    """The option by which ``fxh console`` finds the host."""
    directory: str
    """A directory in dom0 for a core file."""
    remove: str = ""
    """The command that removes the whole host, if it exists for this run only."""
