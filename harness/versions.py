# SPDX-License-Identifier: BSD-2-Clause
"""Compares versions as numbers: 9.9 is older than 10.0, and 4.9 is older than 4.17."""

from __future__ import annotations

import re
from dataclasses import dataclass, field

# In the order of their time: first main, then releng, then the stable branch (sys/conf/newvers.sh, BRANCH).
_STAGES = ("CURRENT", "ALPHA", "PRERELEASE", "BETA", "RC", "RELEASE", "STABLE")


@dataclass(frozen=True, order=True)
class Release:
    """A FreeBSD release name such as ``15.1-RELEASE-p1``. Comparison is by age, not by spelling.

    ``stage`` is an index of :data:`_STAGES`, ``number`` is 2 for ``RC2``, ``patch`` is 1 for ``-p1``; 0 if absent.
    """

    major: int
    minor: int
    stage: int
    number: int
    patch: int
    name: str = field(compare=False)

    @property
    def released(self) -> bool:
        return _STAGES[self.stage] == "RELEASE"

    @property
    def candidate(self) -> bool:
        """Whether it precedes its release: ALPHA, PRERELEASE, BETA or RC."""
        return _STAGES[self.stage] in ("ALPHA", "PRERELEASE", "BETA", "RC")


# 14.3-RELEASE     14.3-RELEASE-p1     15.1-RC2     15.1-RC1-p1     16.0-CURRENT     9.9
_NAME = re.compile(rf"(\d{{1,4}})\.(\d{{1,4}})(?:-({'|'.join(_STAGES)})(\d{{1,4}})?(?:-p(\d{{1,4}}))?)?")


def release(name: str) -> Release | None:
    """The release with this name; None for an invalid name. A bare ``9.9`` counts as ``9.9-RELEASE``."""
    match = _NAME.fullmatch(name)
    if match is None:
        return None
    major, minor, stage, number, patch = match.groups()
    return Release(int(major), int(minor), _STAGES.index(stage or "RELEASE"), int(number or 0), int(patch or 0), name)


def numbers(text: str) -> tuple[int, ...]:
    """The numbers in ``text``, as a sort key: (4, 17) for ``4.17``."""
    return tuple(map(int, re.findall(r"\d+", text)))
