# SPDX-License-Identifier: BSD-2-Clause
"""The fixtures a case is written with."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from harness.errors import CannotRun, InfrastructureError
from harness.guests.guest import Guest
from harness.guests.shape import Shape
from harness.hosts import scratch as disks
from harness.hosts.host import XenHost
from harness.hosts.scratch import ScratchDisk
from harness.images.image import Image
from harness.plugin import cells, evidence, inputs
from harness.plugin.case_context import CaseContext
from harness.plugin.cells import Cell
from harness.plugin.guest_factory import Prepare
from harness.plugin.state import CASE, RIG, case_directory
from harness.plugin.worker_env import WorkerEnvironment
from harness.xen.toolstack import Toolstack

NewGuest = Callable[..., Guest]
"""``new_guest(**shape)`` and ``booted(**shape)``: a guest of the cell, keywords as of :class:`harness.guests.guest.Shape`.

``booted`` takes ``prepare``, too: a function of the booted guest that brings it to where several cases begin (addresses,
files), and whose result is ``guest.prepared``. On a lab that is done once and kept.
"""


NewScratch = Callable[..., tuple[ScratchDisk, ...]]


@pytest.fixture(scope="session")
def rig(request: pytest.FixtureRequest) -> WorkerEnvironment:
    """The worker's hosts and guests."""
    return request.config.stash[RIG]


@pytest.fixture
def case(request: pytest.FixtureRequest, rig: WorkerEnvironment, cell: Cell) -> Iterator[CaseContext]:
    """What this case does, for its result; afterwards dom0 has to be as before."""
    context = CaseContext(case_directory(request.config, request.node.nodeid), cell)
    request.node.stash[CASE] = context
    yield context
    if context.kept:
        return
    rig.clean(context)
    if context.host is not None:
        leaks = rig.leaks(cell, context.given)
        if leaks:
            evidence.gather(context)
            names = "\n  ".join(map(str, leaks))
            pytest.fail(f"this case left things in dom0:\n  {names}", pytrace=False)


@pytest.fixture
def host(request: pytest.FixtureRequest, rig: WorkerEnvironment, cell: Cell, case: CaseContext) -> XenHost:
    """The cell's Xen host, at rest."""
    found = rig.host(cell)
    case.host = found
    _capable(request, found, cell)
    case.inputs.update(_inputs(found))
    return found


@pytest.fixture
def toolstack(host: XenHost) -> Toolstack:
    """xl on the cell's host."""
    return host.toolstack


@pytest.fixture
def new_guest(rig: WorkerEnvironment, cell: Cell, host: XenHost, case: CaseContext) -> NewGuest:
    """Makes guests of the cell that are not created yet; they are removed after the case."""

    def make(**shape: object) -> Guest:
        with _skipping():
            guest = rig.new_guest(cell, host, case.directory, _shape(cell, shape))
        case.guests.append(guest)
        case.inputs.update(inputs.of(rig.source(cell)))
        return guest

    return make


@pytest.fixture
def booted(request: pytest.FixtureRequest, rig: WorkerEnvironment, cell: Cell, case: CaseContext) -> NewGuest:
    """``booted(**shape)``: a guest with a shell, restored from a warm checkpoint of that shape on a lab, booted elsewhere."""

    def make(prepare: Prepare | None = None, **shape: object) -> Guest:
        with _skipping():
            found = rig.booted_guest(cell, case, _shape(cell, shape), prepare)
        _capable(request, found.host, cell)
        case.inputs.update(_inputs(found.host) | inputs.of(rig.source(cell)))
        return found

    return make


@pytest.fixture
def guest(booted: NewGuest) -> Guest:
    """A booted guest with a shell and nothing special."""
    return booted()


@pytest.fixture
def scratch(rig: WorkerEnvironment, cell: Cell, case: CaseContext) -> NewScratch:
    """``scratch("one", "two", size=MIB)``: small disks in dom0 that hold their own labels; ask for a guest or host first."""

    def make(*labels: str, size: int = disks.MIB, sector: int = 512) -> tuple[ScratchDisk, ...]:
        if case.host is None:
            raise InfrastructureError("this case has no host yet", hint="ask for the fixture guest or host before scratch disks")
        host, tag = case.host, secrets.token_hex(3)
        rig.used(cell)
        made = disks.create(host, [f"{label}.{tag}" for label in labels], size=size, sector=sector)
        case.given.append(f"{host.directory}/scratch")
        case.undo.append(lambda: disks.remove(host, made))
        return made

    return make


@pytest.fixture
def image(rig: WorkerEnvironment, cell: Cell) -> Image:
    """The image under test, with its manifest; a case that asks for it is skipped where there is none."""
    if not cell.under_test or rig.image is None:
        pytest.skip("needs an image with a manifest; elsewhere: fxh run --image IMAGE")
    return rig.image


@pytest.fixture
def root_device(rig: WorkerEnvironment, cell: Cell) -> str:
    """The cell's guest's root where nothing else is asked for: ``xbd0p2``, or as ``zfs:zroot/ROOT/default`` (GuestSource.root)."""
    return rig.source(cell).root


@pytest.fixture
def kernel_file(rig: WorkerEnvironment, cell: Cell) -> Path:
    """The kernel file that the cell's guest is booted with, as it is on this machine."""
    kernel = rig.source(cell).kernel
    if kernel is None:
        pytest.skip("needs a kernel as a file of its own; elsewhere: fxh run --image IMAGE")
    return kernel


def _shape(cell: Cell, shape: dict[str, object]) -> Shape:
    """The shape that a case asks for, of the cell's guest type and firmware."""
    return Shape(**{"type": cell.type, "firmware": cell.firmware, **shape})  # type: ignore[arg-type]


def _inputs(host: XenHost) -> dict[str, str]:
    facts = host.facts
    found = {"host": facts.name, "backend": facts.backend, "xen": facts.xen, "dom0": facts.dom0}
    if facts.note:
        found["lab"] = facts.note
        found["qemu"] = facts.note.partition(",")[0]
    if facts.quirks:
        found["quirks"] = "; ".join(facts.quirks)
    return found


@contextmanager
def _skipping() -> Iterator[None]:
    """A guest that cannot run so on this host is no failure of anybody's."""
    try:
        yield
    except CannotRun as exc:
        pytest.skip(f"{exc.message}; elsewhere: {exc.hint}" if exc.hint else exc.message)


def _capable(request: pytest.FixtureRequest, host: XenHost, cell: Cell) -> None:
    """Skip what this host cannot do, with the reason and the command that would run it elsewhere."""
    marks = list(request.node.iter_markers("needs"))
    wanted = {name for mark in marks for name in mark.kwargs.get("capability", ())} | {cell.type}
    missing = wanted - host.capabilities
    if missing:
        command = cells.elsewhere(marks, request.node.nodeid)
        pytest.skip(f"needs a host with {', '.join(sorted(missing))}; elsewhere: {command}")
