# SPDX-License-Identifier: BSD-2-Clause
"""What a guest OS prints on its console, as one value: the modules of this package read it, each guest OS supplies its own."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property

from harness.console.machinery import Machinery
from harness.console.markers import MARKERS, Marker
from harness.console.stages import Stage


@dataclass(frozen=True)
class Banner:
    """A kernel's first line, where other programs print the same line.

    It begins a boot if ``next_line`` follows it, or if ``alone`` matches all output from it on and nothing more comes.
    """

    stage: Stage
    next_line: re.Pattern[bytes]
    alone: re.Pattern[bytes]


@dataclass(frozen=True)
class Question:
    """What the console's reader asks a dead guest at ``prompt``."""

    prompt: bytes
    commands: tuple[str, ...]


@dataclass(frozen=True)
class ConsoleTables:
    """The console of one guest OS.

    The last of ``stages`` is the login prompt; one that is named ``kernel`` shows that the kernel runs.
    """

    stages: tuple[Stage, ...]
    boots: tuple[Stage, ...] = ()
    """The first lines of a boot. After the stage ``kernel`` such a line is a second boot."""
    banner: Banner | None = None
    replayed: re.Pattern[bytes] | None = None
    """A line after which the kernel prints its log again: the line of ``boots`` that follows it is no boot."""
    questions: Mapping[str, Question] = field(default_factory=dict)
    """By the kind of the marker whose prompt it is."""
    machinery: Machinery = field(default_factory=Machinery)
    markers: tuple[Marker, ...] = ()
    """Lines of a dying kernel that :data:`harness.console.markers.MARKERS` lacks."""

    @cached_property
    def all_markers(self) -> tuple[Marker, ...]:
        return (*MARKERS, *self.markers)

    @property
    def kernel_literals(self) -> tuple[bytes, ...]:
        """Byte strings that show that the kernel runs."""
        return tuple(stage.literal for stage in self.stages if stage.name == "kernel")
