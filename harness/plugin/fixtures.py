# SPDX-License-Identifier: BSD-2-Clause
"""The fixtures of the cases."""

from __future__ import annotations

import json
import secrets
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol, Unpack

import pytest

from harness.config import duration
from harness.errors import CannotRun, InfrastructureError, UsageError
from harness.guests.guest import Guest
from harness.guests.host_pair import HostPair
from harness.guests.shape import Shape, ShapeArgs
from harness.hosts import scratch as disks
from harness.hosts.host import XenHost
from harness.hosts.scratch import ScratchDisk
from harness.images.image import Image
from harness.plugin import cells, evidence, inputs
from harness.plugin.case_context import CaseContext
from harness.plugin.cells import Cell
from harness.plugin.guest_factory import Prepare
from harness.plugin.state import CASE, OPTIONS, WORKER_ENV, case_directory
from harness.plugin.worker_env import WorkerEnvironment
from harness.xen.toolstack import Toolstack


class NewGuest(Protocol):
    """``new_guest(**shape)``: a guest of the cell with these fields of :class:`harness.guests.shape.Shape`."""

    def __call__(self, **shape: Unpack[ShapeArgs]) -> Guest: ...


class Booted(Protocol):
    """``booted(**shape)``: as :class:`NewGuest`, with a shell.

    ``prepare`` is a function that prepares the booted guest (addresses, files) for several cases; its result is
    ``guest.prepared``. A lab prepares once and keeps the guest in a checkpoint.
    """

    def __call__(self, prepare: Prepare | None = None, /, **shape: Unpack[ShapeArgs]) -> Guest: ...


@dataclass(frozen=True)
class WalkRequest:
    """The random walk that the run asks for: ``seconds`` long from ``seed``, or the content of a walk.json as ``replay``."""

    seconds: int
    seed: int
    replay: Any = None
    file: str = ""


NewScratch = Callable[..., tuple[ScratchDisk, ...]]


@pytest.fixture(scope="session")
def worker_env(request: pytest.FixtureRequest) -> WorkerEnvironment:
    """The hosts and guests of the worker."""
    return request.config.stash[WORKER_ENV]


@pytest.fixture
def case(request: pytest.FixtureRequest, worker_env: WorkerEnvironment, cell: Cell) -> Iterator[CaseContext]:
    """The context of the case, for its result. After the case, dom0 must be as before."""
    context = CaseContext(case_directory(request.config, request.node.nodeid), cell, symbols=worker_env.symbols)
    request.node.stash[CASE] = context
    worker_env.begin_case(cell, any_kernel=request.node.get_closest_marker("any_kernel") is not None)
    yield context
    if context.kept:
        return
    worker_env.clean_up(context)
    if context.host is not None:
        leaks = worker_env.leaks(cell, context)
        if leaks:
            evidence.gather(context)
            names = "\n  ".join(map(str, leaks))
            pytest.fail(f"the case left objects in dom0:\n  {names}", pytrace=False)


@pytest.fixture
def host(request: pytest.FixtureRequest, worker_env: WorkerEnvironment, cell: Cell, case: CaseContext) -> XenHost:
    """The Xen host of the cell, with an idle dom0."""
    found = worker_env.host(cell)
    case.use(found)
    _require_capabilities(request, found, cell)
    case.inputs.update(inputs.of_host(found))
    return found


@pytest.fixture
def second_host(worker_env: WorkerEnvironment, cell: Cell, case: CaseContext) -> Iterator[XenHost]:
    """A second Xen host like that of the cell, for this case alone."""
    with _skip_if_cannot_run():
        found = worker_env.second_host(cell)
    yield found
    found.close()


@pytest.fixture
def host_pair(host: XenHost, second_host: XenHost) -> Iterator[HostPair]:
    """The cell's host and a second one, connected. They stay so until the evidence of a failure is gathered."""
    with ExitStack() as connected:
        with _skip_if_cannot_run():
            pair = connected.enter_context(HostPair(host, second_host))
        yield pair


@pytest.fixture
def toolstack(host: XenHost) -> Toolstack:
    """xl on the host of the cell."""
    return host.toolstack


@pytest.fixture
def new_guest(
    request: pytest.FixtureRequest, worker_env: WorkerEnvironment, cell: Cell, host: XenHost, case: CaseContext
) -> NewGuest:
    """Defines guests of the cell whose domains are not created yet. They are removed after the case."""

    def make(**shape: Unpack[ShapeArgs]) -> Guest:
        with _skip_if_cannot_run():
            guest = worker_env.new_guest(cell, host, case.directory, _shape(request, worker_env, cell, shape))
        case.guests.append(guest)
        case.inputs.update(inputs.of_guest(worker_env.source(cell), guest))
        return guest

    return make


@pytest.fixture
def booted(request: pytest.FixtureRequest, worker_env: WorkerEnvironment, cell: Cell, case: CaseContext) -> Booted:
    """``booted(**shape)``: a guest with a shell, from a warm checkpoint of this shape in a lab, else from a boot."""

    def make(prepare: Prepare | None = None, /, **shape: Unpack[ShapeArgs]) -> Guest:
        with _skip_if_cannot_run():
            found = worker_env.booted_guest(cell, case, _shape(request, worker_env, cell, shape), prepare)
        _require_capabilities(request, found.host, cell)
        case.inputs.update(inputs.of_host(found.host) | inputs.of_guest(worker_env.source(cell), found))
        return found

    return make


@pytest.fixture
def guest(booted: Booted) -> Guest:
    """A booted guest with a shell, in the default shape."""
    return booted()


@pytest.fixture
def scratch(worker_env: WorkerEnvironment, cell: Cell, case: CaseContext) -> NewScratch:
    """``scratch("one", "two", size=MIB)``: small disks in dom0 that contain their labels. Request a guest or host first."""

    def make(*labels: str, size: int = disks.MIB, sector: int = 512) -> tuple[ScratchDisk, ...]:
        if case.host is None:
            raise InfrastructureError("the case has no host yet", hint="request the fixture guest or host before scratch disks")
        host, tag = case.host, secrets.token_hex(3)
        worker_env.mark_used(cell)
        made = disks.create(host, [f"{label}.{tag}" for label in labels], size=size, sector=sector)
        case.own_resources.append(f"{host.directory}/scratch")
        case.undo.append(lambda: disks.remove(host, made))
        return made

    return make


@pytest.fixture
def walk_request(request: pytest.FixtureRequest) -> WalkRequest:
    """The random walk of ``--walk`` or ``--walk-replay``. Without one the case is skipped."""
    options = request.config.stash[OPTIONS]
    if not options.walk and options.walk_replay is None:
        pytest.skip("needs --walk, because a walk takes minutes; elsewhere: fxh run lifecycle -k walk --walk 10m")
    seed = options.walk_seed
    if options.walk_replay is None:
        return WalkRequest(duration.seconds(options.walk), seed)
    try:
        data = json.loads(options.walk_replay.read_text())
    except ValueError as exc:
        raise UsageError(f"--walk-replay {options.walk_replay}: {exc}", hint="give the walk.json of a case") from exc
    return WalkRequest(duration.seconds(options.walk), seed, data, options.walk_replay.name)


@pytest.fixture
def image(worker_env: WorkerEnvironment, cell: Cell) -> Image:
    """The image under test, with its manifest. Without one the case is skipped."""
    if not cell.under_test or worker_env.image is None:
        pytest.skip("needs an image with a manifest; elsewhere: fxh run --image IMAGE")
    return worker_env.image


@pytest.fixture
def root_device(worker_env: WorkerEnvironment, cell: Cell) -> str:
    """The default root device of the cell's guest: ``xbd0p2``, or ``zfs:zroot/ROOT/default`` (GuestSource.root)."""
    return worker_env.source(cell).root


@pytest.fixture
def kernel_file(worker_env: WorkerEnvironment, cell: Cell) -> Path:
    """The kernel file of the cell's guest on this machine. Without one the case is skipped."""
    kernel = worker_env.source(cell).kernel
    if kernel is None:
        pytest.skip("needs a kernel as a separate file; elsewhere: fxh run --image IMAGE")
    return kernel


def _shape(request: pytest.FixtureRequest, worker_env: WorkerEnvironment, cell: Cell, shape: ShapeArgs) -> Shape:
    """The requested shape, by default with the guest type and firmware of the cell.

    A case with disks of its own (the fixture ``scratch``) may count disks, so its guest gets no dump device.
    """
    dump_device = worker_env.keeps_dumps and "scratch" not in request.fixturenames
    return replace(Shape(cell.type, firmware=cell.firmware, dump_device=dump_device), **shape)


@contextmanager
def _skip_if_cannot_run() -> Iterator[None]:
    """Skip the case if this host cannot run the guest in this shape."""
    try:
        yield
    except CannotRun as exc:
        pytest.skip(exc.reason)


def _require_capabilities(request: pytest.FixtureRequest, host: XenHost, cell: Cell) -> None:
    """Skip the case if the host lacks a capability, with the reason and a command that runs it."""
    marks = list(request.node.iter_markers("needs"))
    wanted = {name for mark in marks for name in mark.kwargs.get("capability", ())} | {cell.type}
    missing = wanted - host.capabilities
    if missing:
        command = cells.elsewhere(marks, request.node.nodeid)
        pytest.skip(f"needs a host with {', '.join(sorted(missing))}; elsewhere: {command}")
