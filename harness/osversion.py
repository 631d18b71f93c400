# SPDX-License-Identifier: BSD-2-Clause
"""FreeBSD versions: the release name, and ``__FreeBSD_version``, which distinguishes kernels of the same name.

14.0-RELEASE (1400097) and 14.0-STABLE of January 2024 (1400507) are both named 14.0, but they behave differently towards Xen.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import lru_cache

from harness.errors import UsageError

# Known numbers of X.0 releases (sys/sys/param.h of releng/14.0 and of 15.0-RELEASE). X.0-CURRENT counts up from X00000 until
# the release branch is created, so an X.0 release is far from X00000.
_X0_RELEASES = {(14, 0): 1400097, (15, 0): 1500068}

# 14.0    14.0-STABLE    15.1-RELEASE-p1
_NAME = re.compile(r"(\d{1,2}\.\d{1,2})(?:-([A-Z][\w.-]*))?")


@dataclass(frozen=True)
class OSVersion:
    """``release`` as in ``14.0``, ``branch`` as in ``STABLE`` or ``RELEASE-p1``; "" if unknown.

    ``osreldate`` is ``__FreeBSD_version`` (sys/sys/param.h), the ``kern.osreldate`` of the running kernel; 0 if unknown.
    """

    release: str = ""
    branch: str = ""
    osreldate: int = 0

    @property
    def number(self) -> tuple[int, int] | None:
        """(major, minor), or None if unknown.

        A derived system may have its own REVISION (``0.1``). If its major differs from that of osreldate, osreldate counts.
        """
        named = re.match(r"(\d+)\.(\d+)", self.release)
        by_name = (int(named[1]), int(named[2])) if named else None
        by_date = (self.osreldate // 100_000, self.osreldate // 1000 % 100) if self.osreldate else None
        if by_name and (by_date is None or by_date[0] == by_name[0]):
            return by_name
        return by_date

    @property
    def lowest(self) -> int:
        """``osreldate``, or else the lowest number of a kernel of this name; 0 if both are unknown.

        A number is ``<major><two digits of minor>Rxx``; R is 0 to 4 on a release branch and 5 to 9 on a stable branch
        (comment at ``__FreeBSD_version`` in sys/sys/param.h). So 13.2 counts as 1302000, 14.0 and 14.0-RELEASE as 1400097,
        14.0-STABLE as 1400500, 14.2-PRERELEASE (a stable branch before its next release) as 1401500, and 15.0-CURRENT as
        1500000.
        """
        if self.osreldate or self.number is None:
            return self.osreldate
        major, minor = self.number
        base = major * 100_000 + minor * 1000
        match self.branch.partition("-")[0]:
            case "CURRENT":
                return base
            case "STABLE":
                return base + 500
            case "PRERELEASE" if minor:
                return base - 500
        return _X0_RELEASES.get(self.number, base)

    def within(self, span: str) -> bool:
        """Whether all bounds of ``span`` hold, for example ``>=12.0,<14.1`` or ``<1400507``.

        A bound with a release compares release names; a bound with a number compares ``lowest``. An unknown version lies in
        every span. Raises UsageError for a malformed span.
        """
        number = self.number
        for at_least, bound in _bounds(span):
            if number is None:
                continue
            below = self.lowest < bound if isinstance(bound, int) else number < bound
            if below == at_least:
                return False
        return True

    def __lt__(self, other: OSVersion) -> bool:
        """Older first. An unknown version is older than any other."""
        return self._order < other._order

    @property
    def _order(self) -> tuple[int, tuple[int, int], str]:
        return self.lowest, self.number or (0, 0), self.branch

    def __str__(self) -> str:
        name = "-".join(filter(None, (self.release, self.branch))) or "of unknown version"
        return f"{name} ({self.osreldate})" if self.osreldate else name


UNKNOWN = OSVersion()


def parse(name: str, osreldate: int = 0) -> OSVersion:
    """The version named ``14.0``, ``14.0-STABLE`` or ``15.1-RELEASE-p1``. Any other name, such as ``unknown``, is ignored."""
    match = _NAME.fullmatch(name.strip())
    return OSVersion(match[1], match[2] or "", osreldate) if match else OSVersion(osreldate=osreldate)


# >=12.0    <14.1    >=14    >=1402000    <1400507
_BOUND = re.compile(r"(>=|<)(?:(\d{6,7})|(\d{1,2})(?:\.(\d{1,2}))?)")


@lru_cache(maxsize=256)
def _bounds(span: str) -> tuple[tuple[bool, int | tuple[int, int]], ...]:
    """For each bound: whether it is a lower bound, and the osreldate or (major, minor)."""
    found: list[tuple[bool, int | tuple[int, int]]] = []
    for word in span.split(","):
        bound = _BOUND.fullmatch(word.strip())
        if bound is None:
            raise UsageError(
                f"FreeBSD {span!r}: {word.strip()!r} is not a bound",
                hint="separate bounds by commas; each is a release or a __FreeBSD_version: >=12.0,<14.1 or >=1402000,<1500000",
            )
        found.append((bound[1] == ">=", int(bound[2]) if bound[2] else (int(bound[3]), int(bound[4] or 0))))
    return tuple(found)
