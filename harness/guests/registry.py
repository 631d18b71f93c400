# SPDX-License-Identifier: BSD-2-Clause
"""The guests that can be tested, by the values of ``--guest``. A new guest OS is a module of harness.guests.os and a line here."""

from __future__ import annotations

from collections.abc import Iterable

from harness.errors import UsageError
from harness.guests.os import freebsd_source, linux
from harness.guests.os.definition import GuestDefinition

GUESTS: dict[str, GuestDefinition] = {definition.name: definition for definition in (linux.GUEST, freebsd_source.GUEST)}
CONTROL = linux.GUEST.name


def definition(name: str) -> GuestDefinition:
    """Raises UsageError for an unknown guest."""
    try:
        return GUESTS[name]
    except KeyError:
        raise UsageError(f"--guest {name}: no such guest", hint=f"valid names: {', '.join(GUESTS)}") from None


def default(files_given: bool) -> tuple[str, ...]:
    """The guest of a run without ``--guest``: the first that needs given files, or the control guest."""
    return next((name,) for name, guest in GUESTS.items() if guest.under_test == files_given)


def of_os(os: str) -> GuestDefinition:
    """The first guest that runs the OS of this name. Raises UsageError if there is none."""
    found = next((guest for guest in GUESTS.values() if guest.os.name == os), None)
    if found is None:
        raise UsageError(f"no guest runs {os}", hint=f"one of {', '.join(os_names())}")
    return found


def os_names() -> tuple[str, ...]:
    return tuple(dict.fromkeys(guest.os.name for guest in GUESTS.values()))


def under_test(names: Iterable[str]) -> tuple[str, ...]:
    """The guests among ``names`` whose files must be given."""
    return tuple(name for name in names if definition(name).under_test)
