# SPDX-License-Identifier: BSD-2-Clause
"""The console of a guest OS as one value. Each guest OS supplies one; the other modules of this package read it."""

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
    """A kernel's first line, if other programs print the same line.

    It begins a boot if ``next_line`` follows it, or if ``alone`` matches all output from it on and silence follows.
    """

    stage: Stage
    next_line: re.Pattern[bytes]
    alone: re.Pattern[bytes]


@dataclass(frozen=True)
class Question:
    """The ``commands`` that the reader runs at the ``prompt`` of a dead guest."""

    prompt: bytes
    commands: tuple[str, ...]


@dataclass(frozen=True)
class ConsoleTables:
    """The console of one guest OS.

    The last of ``stages`` is the login prompt. A stage named ``kernel`` shows that the kernel runs.
    """

    stages: tuple[Stage, ...]
    boots: tuple[Stage, ...] = ()
    """The first lines of a boot. After the stage ``kernel``, such a line begins a second boot."""
    banner: Banner | None = None
    replayed: re.Pattern[bytes] | None = None
    """A line after which the kernel prints its log again. A line of ``boots`` after it begins no boot."""
    questions: Mapping[str, Question] = field(default_factory=dict)
    """Commands by the kind of the prompt's marker."""
    machinery: Machinery = field(default_factory=Machinery)
    markers: tuple[Marker, ...] = ()
    """Markers of this OS in addition to :data:`harness.console.markers.MARKERS`."""

    @cached_property
    def all_markers(self) -> tuple[Marker, ...]:
        return (*MARKERS, *self.markers)

    @property
    def kernel_literals(self) -> tuple[bytes, ...]:
        """Byte strings that show that the kernel runs."""
        return tuple(stage.literal for stage in self.stages if stage.name == "kernel")
