# SPDX-License-Identifier: BSD-2-Clause
"""The address of a host that a labgrid coordinator provides: ``labgrid:tag=xen,arch=amd64``."""

from __future__ import annotations

import importlib.util
import os
import re
from collections.abc import Mapping

from harness.errors import UsageError

PREFIX = "labgrid:"
DEFAULT_COORDINATOR = "127.0.0.1:20408"
"""The coordinator that labgrid's own client takes by default."""

# arch=amd64: what labgrid 26 accepts as the name of a tag (TAG_KEY in labgrid/remote/common.py), and any value without a blank.
_TAG = re.compile(r"([a-z][a-z0-9_]+)=([^\s,=]+)")


def is_labgrid(address: str) -> bool:
    return address.startswith(PREFIX)


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
    found: dict[str, str] = {}
    for word in filter(None, address.removeprefix(PREFIX).split(",")):
        tag = _TAG.fullmatch(word)
        if tag is None:
            raise UsageError(
                f"{address}: invalid tag {word!r}", hint="use KEY=VALUE, KEY in lower case: labgrid:tag=xen,arch=amd64"
            )
        found[tag[1]] = tag[2]
    if not found:
        raise UsageError(
            f"{address}: no tags", hint="name the tags of the places: labgrid:tag=xen, or one place: labgrid:name=PLACE"
        )
    if importlib.util.find_spec("labgrid") is None:
        raise UsageError(f"{address}: labgrid is not installed", hint="pip install 'freebsd-xen-harness[labgrid]'")
    return found


def coordinator(configured: str) -> str:
    """The coordinator's HOST:PORT: ``configured``, else ``LG_COORDINATOR`` as for labgrid's own client, else its default."""
    return configured or os.environ.get("LG_COORDINATOR", "") or DEFAULT_COORDINATOR
