# SPDX-License-Identifier: BSD-2-Clause
"""The address of a host that a labgrid coordinator provides: ``labgrid:tag=xen,arch=amd64``."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Mapping

from harness.config.addresses import LABGRID, labgrid_tags
from harness.errors import UsageError

DEFAULT_COORDINATOR = "127.0.0.1:20408"
"""The coordinator that labgrid's own client takes by default."""


def is_labgrid(address: str) -> bool:
    return address.startswith(LABGRID)


def split(words: str) -> list[str]:
    """Split a list of hosts at its commas. The tags of one ``labgrid:`` address stay together."""
    found: list[str] = []
    for word in filter(None, (part.strip() for part in words.split(","))):
        if "=" in word and found and is_labgrid(found[-1]) and not is_labgrid(word):
            found[-1] += f",{word}"
        else:
            found.append(word)
    return found


def parse(address: str) -> Mapping[str, str]:
    """The tags that a place needs. The tag ``name`` is the name of the place itself.

    Raises UsageError for an invalid tag and if labgrid is not installed.
    """
    found = labgrid_tags(address)
    if importlib.util.find_spec("labgrid") is None:
        raise UsageError(f"{address}: labgrid is not installed", hint="pip install 'freebsd-xen-harness[labgrid]'")
    return found


def coordinator(configured: str) -> str:
    """The coordinator's HOST:PORT: ``configured``, else ``LG_COORDINATOR`` as for labgrid's own client, else its default."""
    return configured or os.environ.get("LG_COORDINATOR", "") or DEFAULT_COORDINATOR
