# SPDX-License-Identifier: BSD-2-Clause
"""The parts of a cell: guest, guest type, firmware, host and Xen."""

from __future__ import annotations

import re
from dataclasses import dataclass

CONTROL_GUEST = "control"
"""The guest that is known to be good."""
FREEBSD = "freebsd"
"""The guest that docs/matrix.json is about."""


@dataclass(frozen=True, order=True)
class Where:
    """The cell in which a case ran; ``str()`` gives its name, for example ``freebsd-hvm-uefi-xen-4.20``.

    All fields are empty for a case without a cell.
    """

    guest: str = ""
    """the control guest, or the name of a guest OS, such as ``freebsd``."""
    type: str = ""
    """``pv``, ``pvh``, ``hvm`` or ``pvshim``."""
    host: str = ""
    """``xen-4.20`` for a lab, or the name of a real host or of a pool."""
    xen: str = ""
    """Major and minor version (``4.20``); empty if the run did not choose it, as on a real host."""
    firmware: str = ""
    """``uefi``, or empty for the default."""

    def __str__(self) -> str:
        return "-".join(filter(None, (self.guest, self.type, self.firmware, self.host)))


NOWHERE = Where()


def own_parameters(nodeid: str, cell: str) -> str:
    """The parameters of a case without its cell: ``halt`` for ``t.py::test_a[freebsd-pvh-xen-4.20-halt]``."""
    _, _, parameters = nodeid.rpartition("::")[2].removesuffix("]").partition("[")
    if not cell:
        return parameters
    return re.sub(rf"(?:^|-){re.escape(cell)}(?=-|$)", "", parameters, count=1).lstrip("-")
