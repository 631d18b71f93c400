# SPDX-License-Identifier: BSD-2-Clause
"""A guest that can be tested: its OS, its guest types, and where its files come from."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from harness.guests.os.base import GuestOS

if TYPE_CHECKING:
    from harness.guests.source import GuestSource
    from harness.images.image import Image


@dataclass(frozen=True)
class SourceRequest:
    """The given files of a run; a function stands for files that are built when they are needed."""

    image: Image | None = None
    kernel: Path | None = None
    disk: Path | None = None
    root: str = ""
    bootloader: str = ""
    control: Callable[[], Path] | None = None
    """The directory of the control guest's files."""


@dataclass(frozen=True)
class GuestDefinition:
    """A guest that can be tested: ``name`` is the value of ``--guest``, ``title`` names it in a sentence."""

    name: str
    os: type[GuestOS]
    title: str
    types: tuple[str, ...]
    """The guest types of its cells, unless a kernel file gives them."""
    find: Callable[[SourceRequest], GuestSource | None]
    """Its source; None without the files that it needs."""
    option: str
    """The option of ``fxh run`` that selects this guest."""
    under_test: bool = False
    """Whether its files have to be given: ``--image``, ``--disk``, ``--kernel``."""
    uefi: bool = False
    """Whether an HVM guest may start from UEFI."""
