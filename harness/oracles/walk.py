# SPDX-License-Identifier: BSD-2-Clause
"""A random walk over the events of a guest's life: its steps, the state that they lead to, and the sequence from a seed.

The sequence follows from the seed and the :class:`Bounds` alone, never from what a guest answered, so it can be repeated.
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass, field, replace
from typing import Any

from harness.errors import GuestDied, UsageError
from harness.oracles import counters

# Steps for which a vif stays down at most. A connection needs about as long to continue as it stood still.
_DOWN = 2
_MTUS = (1280, 1400, 1500)
_STREAMS = ("to dom0", "to the guest")
_FILE = "file"
# A detach that follows its attach at once is the matter of lifecycle/test_storm.py; here both ends agree after each step.
EVENTS = (
    "attach", "detach", "save and restore", "pause", "balloon", "vif down", "vif up", "offload", "mtu", "disk load", "net load", "vcpus",
)  # fmt: skip


@dataclass(frozen=True)
class Step:
    """One event. ``value`` is its object: ``xvdc``, MiB of the balloon, seconds of a pause, ``tso off``; "" if nothing."""

    event: str
    value: str | int = ""

    def __str__(self) -> str:
        return f"{self.event} {self.value}".strip()


@dataclass(frozen=True)
class Bounds:
    """The bounds of the steps for one guest."""

    disks: tuple[str, ...] = ("xvdc", "xvdd")
    """Vdevs that are attached and detached."""
    vifs: tuple[str, ...] = ("vif1",)
    low: int = 100
    whole: int = 160
    """MiB: the smallest target of the balloon, and the memory of the guest."""
    pause: int = 4
    """The longest pause in seconds."""
    offloads: tuple[str, ...] = ("tso",)
    """Those that are switched."""
    on: frozenset[str] = frozenset({"tso"})
    """Those that are on at the start."""
    mtu: int = 1500
    vcpus: int = 2
    """The most vCPUs; the walk starts with one."""
    without: frozenset[str] = frozenset()
    """Events that a walk leaves out. A replayed file may have them."""


@dataclass(frozen=True)
class Model:
    """The state to which the steps so far lead."""

    bounds: Bounds
    attached: frozenset[str] = frozenset()
    balloon: int = 0
    on: frozenset[str] = frozenset()
    mtu: int = 1500
    vcpus: int = 1
    down: int = 0
    """For how many steps the vif has been down; 0 if it is up."""

    @classmethod
    def start(cls, bounds: Bounds) -> Model:
        return cls(bounds, frozenset(), bounds.whole, bounds.on, bounds.mtu)

    def values(self, event: str) -> list[str | int]:
        """The values with which ``event`` is possible now; [] if it is not."""
        bounds = self.bounds
        devices = [*bounds.disks, *bounds.vifs]
        if self.down > _DOWN:
            return [""] if event == "vif up" else []
        found: Mapping[str, Callable[[], Iterable[str | int]]] = {
            "attach": lambda: (name for name in devices if name not in self.attached),
            "detach": lambda: (name for name in devices if name in self.attached),
            "save and restore": lambda: ("",),
            "pause": lambda: range(1, bounds.pause + 1),
            "balloon": lambda: (mib for mib in range(bounds.low, bounds.whole + 1, 4) if mib != self.balloon),
            "vif down": lambda: () if self.down else ("",),
            "vif up": lambda: ("",) if self.down else (),
            # The interface may reset, which needs its backend.
            "offload": lambda: () if self.down else (f"{name} {'off' if name in self.on else 'on'}" for name in bounds.offloads),
            "mtu": lambda: (mtu for mtu in _MTUS if mtu != self.mtu and mtu <= bounds.mtu),
            "disk load": lambda: (_FILE, *(name for name in bounds.disks if name in self.attached)),
            "net load": lambda: () if self.down else _STREAMS,
            "vcpus": lambda: (count for count in range(1, bounds.vcpus + 1) if count != self.vcpus),
        }
        return list(found[event]()) if event in found else []

    def allows(self, step: Step) -> bool:
        return step.value in self.values(step.event)

    def after(self, step: Step) -> Model:
        """The state after ``step``, which must be allowed."""
        down = self.down + 1 if self.down else 0
        match step.event:
            case "attach":
                return replace(self, attached=self.attached | {str(step.value)}, down=down)
            case "detach":
                return replace(self, attached=self.attached - {str(step.value)}, down=down)
            case "balloon":
                return replace(self, balloon=int(step.value), down=down)
            case "offload":
                name, _, wanted = str(step.value).partition(" ")
                return replace(self, on=self.on | {name} if wanted == "on" else self.on - {name}, down=down)
            case "mtu":
                return replace(self, mtu=int(step.value), down=down)
            case "vcpus":
                return replace(self, vcpus=int(step.value), down=down)
            case "vif down":
                return replace(self, down=1)
            # The restored domain has a new vif, which is up.
            case "vif up" | "save and restore":
                return replace(self, down=0)
        return replace(self, down=down)

    def setup(self) -> tuple[Step, ...]:
        """Steps that lead from the start to this state."""
        start = Model.start(self.bounds)
        steps = [Step("attach", name) for name in sorted(self.attached)]
        if self.balloon != start.balloon:
            steps.append(Step("balloon", self.balloon))
        steps += [Step("offload", f"{name} {'on' if name in self.on else 'off'}") for name in sorted(self.on ^ start.on)]
        if self.mtu != start.mtu:
            steps.append(Step("mtu", self.mtu))
        if self.vcpus != start.vcpus:
            steps.append(Step("vcpus", self.vcpus))
        if self.down:
            steps.append(Step("vif down"))
        return tuple(steps)


def steps(seed: int, bounds: Bounds) -> Iterator[Step]:
    """The endless sequence of a seed. Each event that is possible has the same chance, then each of its values."""
    chance, model = random.Random(seed), Model.start(bounds)
    events = [name for name in EVENTS if name not in bounds.without]
    while True:
        event = chance.choice([name for name in events if model.values(name)])
        step = Step(event, chance.choice(model.values(event)))
        model = model.after(step)
        yield step


def possible(wanted: Iterable[Step], bounds: Bounds) -> tuple[Step, ...]:
    """``wanted`` without the steps that their predecessors make impossible."""
    model, found = Model.start(bounds), []
    for step in wanted:
        if model.allows(step):
            model = model.after(step)
            found.append(step)
    return tuple(found)


def repeated(given: Sequence[Step], bounds: Bounds, name: str) -> tuple[Step, ...]:
    """The steps ``given`` by the file ``name``. Raises UsageError if one of them is not possible with these bounds."""
    model = Model.start(bounds)
    for number, step in enumerate(given, 1):
        if not model.allows(step):
            raise UsageError(f"{name}: step {number} ({step}) is not possible with this guest", hint="give a walk of the same cell")
        model = model.after(step)
    return tuple(given)


def suffix(taken: Sequence[Step], count: int, bounds: Bounds) -> tuple[Step, ...]:
    """The last ``count`` steps, after steps that lead to the state before them."""
    model = Model.start(bounds)
    for step in taken[: len(taken) - count]:
        model = model.after(step)
    return (*model.setup(), *taken[len(taken) - count :])


# -- the file of a walk -------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Violation:
    """An invariant that does not hold, and the observation. ``died`` is the error of a guest that is dead or silent."""

    invariant: str
    lines: tuple[str, ...]
    died: GuestDied | None = field(default=None, compare=False)

    @property
    def silent(self) -> bool:
        """Whether the guest has not reported its death: then its host may be to blame."""
        return self.died is None or self.died.death.kind in ("hang", "eof")


@dataclass
class Record:
    """The content of walk.json. ``taken`` has a row for each step: the seconds since the start and how long the step took."""

    seed: int
    cell: str
    duration: int = 0
    taken: list[dict[str, Any]] = field(default_factory=list)
    failed: dict[str, Any] = field(default_factory=dict)
    shrunk: dict[str, Any] = field(default_factory=dict)

    def begin(self, step: Step, at: float) -> None:
        """Note a step before it happens: the file of a killed run ends with it."""
        self.taken.append({"event": step.event, "value": step.value, "at": round(at, 1)})

    def end(self, seconds: float) -> None:
        self.taken[-1]["seconds"] = round(seconds, 1)

    def fail(self, violation: Violation) -> None:
        self.failed = {"step": len(self.taken), "invariant": violation.invariant, "observed": list(violation.lines)}

    def as_json(self) -> dict[str, Any]:
        return {"schema": 1, "seed": self.seed, "cell": self.cell, "duration": self.duration,
                "steps": self.taken, "failed": self.failed, "shrunk": self.shrunk}  # fmt: skip


def rows(wanted: Iterable[Step]) -> list[dict[str, Any]]:
    """The steps as walk.json has them."""
    return [{"event": step.event, "value": step.value} for step in wanted]


def read(data: Any, name: str) -> tuple[int, tuple[Step, ...], bool]:
    """The seed and the steps of a walk.json, and whether they were shrunk already: the shortest sequence that the file has.

    Raises UsageError that names the file ``name``.
    """
    try:
        found = data["shrunk"].get("steps") or data["steps"]
        taken = tuple(Step(row["event"], row["value"]) for row in found)
        seed, shrunk = int(data["seed"]), bool(data["shrunk"].get("steps"))
    except (KeyError, TypeError, AttributeError, ValueError):
        raise UsageError(f"{name}: not a file of a walk", hint="give the walk.json of a case") from None
    wrong = [str(step) for step in taken if step.event not in EVENTS or not isinstance(step.value, str | int)]
    if wrong or not taken:
        raise UsageError(f"{name}: {f'unknown step {wrong[0]}' if wrong else 'no steps'}", hint="give the walk.json of a case")
    return seed, taken, shrunk


# -- logs of a shared host -----------------------------------------------------------------------------------------------

# d7   d7v0   dom7   Domain 7   vif7.0   vif-7-0   vbd-7-51712   tap7.0   xnb7.0   backend/vbd/7/51712
_NAMES_DOMAIN = re.compile(
    r"\b(?:d(?:om)?(\d+)(?:v\d+)?|[Dd]omain (\d+)|(?:vif|vbd|tap|xnb)-?(\d+)[-.]\d+|backend/\w+/(\d+)/\d+)\b"
)


def of_domains(log: str, domids: Set[int]) -> str:
    """The lines of a log of dom0's kernel or of Xen without those that name guests, but none of ``domids``."""

    def foreign(line: str) -> bool:
        named = {int(number) for groups in _NAMES_DOMAIN.findall(line) for number in groups if number} - {0}
        return bool(named) and not named & domids

    return "".join(line for line in log.splitlines(keepends=True) if not foreign(line))


# -- what a kernel holds ------------------------------------------------------------------------------------------------


# Events that take event channels, grants and memory: each may leak some. A detach only gives them back.
_TAKING = ("attach", "save and restore")


class Ledger:
    """Counts of the objects that a guest and Xen hold for the guest's devices: a leak grows with each attach or restore."""

    # A kernel may keep this many of each kind once, as an allocator's cache does.
    SLACK = 3

    def __init__(self, kept_per_restore: int = 0) -> None:
        """``kept_per_restore``: allocations that a restore leaves, as a known issue says."""
        self._first: dict[object, tuple[Mapping[str, int], int]] = {}
        self._events, self._kept, self._kept_per_restore = 0, 0, kept_per_restore

    def take(self, event: str) -> None:
        """Count the event of a step, before :meth:`grown` judges it."""
        self._events += event in _TAKING
        self._kept += self._kept_per_restore * (event == "save and restore")

    def grown(self, state: object, held: Mapping[str, int]) -> tuple[str, ...]:
        """A line for each kind that grew since the first time in the same ``state``."""
        held = {kind: count - self._kept * (kind == "allocations") for kind, count in held.items()}
        first, since = self._first.setdefault(state, (held, self._events))
        events = self._events - since
        most = self.SLACK + events // 8
        return tuple(
            f"{kind} grew from {first.get(kind, 0)} to {count} in {events} attaches and restores"
            for kind, count in held.items()
            if count - first.get(kind, 0) > most
        )


# -- packets --------------------------------------------------------------------------------------------------------------

# Packets that both ends may count differently: those on their way, and one in a hundred.
_ON_THE_WAY, _SHARE = 24, 100


def unequal(before: tuple[counters.Counts, counters.Counts], after: tuple[counters.Counts, counters.Counts]) -> tuple[str, ...]:
    """A line for each direction in which guest and dom0 counted differently, and for errors.

    Each pair has the guest's counters, named as in :mod:`harness.oracles.counters`, and those of dom0's vif (Linux's names).
    """
    guest, vif = (counters.grown(first, last) for first, last in zip(before, after, strict=True))
    pairs = (
        ("to dom0", counters.total(guest, counters.OUT), vif.get("rx_packets", 0)),
        ("to the guest", counters.total(guest, counters.IN), vif.get("tx_packets", 0)),
    )
    lines = [
        f"{way}: the guest counted {mine} packets, dom0 {theirs}"
        for way, mine, theirs in pairs
        if abs(mine - theirs) > _ON_THE_WAY + max(mine, theirs) // _SHARE
    ]
    errors = counters.total(guest, counters.ERRORS_IN, counters.ERRORS_OUT), vif.get("rx_errors", 0) + vif.get("tx_errors", 0)
    return tuple(
        lines + [f"{side} counted {count} errors" for side, count in zip(("the guest", "dom0"), errors, strict=True) if count]
    )
