# SPDX-License-Identifier: BSD-2-Clause
"""A fake host with facts and paths only: enough to write a domain's configuration."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any


@dataclass
class Host:
    """Accepts files and stores nothing."""

    emulated: bool = True
    no_uefi: str = ""
    own_ovmf: Path | None = None
    bridge: str = "xenbr0"
    capabilities: frozenset[str] = frozenset({"pv", "pvh", "hvm"})
    checkpoints: None = None
    lease: None = None
    failure: str = ""

    @property
    def facts(self) -> Any:
        return SimpleNamespace(emulated=self.emulated, name="h", xen="4.20")

    def last_words(self, limit: int, *, answers: bool) -> dict[str, bytes]:
        return {}

    def files(self, *local: Path) -> tuple[str, ...]:
        return tuple(f"/there/{path.name}" for path in local)

    def mac(self, domain: str, index: int) -> str:
        return f"00:16:3e:00:00:{index:02x}"

    def disk(self, local: Path, fmt: str = "raw") -> str:
        return str(local)
