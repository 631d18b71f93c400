# SPDX-License-Identifier: BSD-2-Clause
"""Fixtures: a guest with an address, and a guest that forwards."""

from __future__ import annotations

import pytest

from harness.guests.link import IPV4, Link
from harness.plugin.case_context import CaseContext
from harness.plugin.fixtures import Booted

from .support import enable_forwarding, family_of, far_namespace, in_family, link_up, routed_between


@pytest.fixture
def link(booted: Booted, case: CaseContext, request: pytest.FixtureRequest) -> Link:
    """The link between dom0 and a booted guest; its parameter is IPv4 (default) or IPv6."""
    guest = booted(link_up)
    return in_family(Link(guest, interface=guest.prepared["interface"]), case, family_of(request))


@pytest.fixture
def sides(booted: Booted, case: CaseContext, request: pytest.FixtureRequest) -> tuple[Link, Link]:
    """The near and the far side of a guest that forwards. The far side has no route back yet."""
    guest, family = booted(routed_between, vifs=2), family_of(request)
    near = in_family(Link(guest, interface=guest.prepared["near"]), case, family)
    far = in_family(Link(guest, 1, far_namespace(guest), guest.prepared["far"]), case, family)
    if family is not IPV4:
        enable_forwarding(near, far)
    case.undo.append(lambda: near.dom0("ip", "route", "del", far.here, check=False))
    return near, far
