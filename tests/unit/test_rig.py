"""How a worker's lab is put back between cases; the lab is played here."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from harness.lab import checkpoint
from harness.plugin import rig as rigs
from harness.plugin.cells import Cell
from harness.plugin.rig import Rig

CELL = Cell("control", "pv", "xen-4.20", "4.20")


class Lab:
    """Remembers which checkpoints there are, and which it was put back to."""

    def __init__(self) -> None:
        self.made: dict[str, str] = {}
        self.restored: list[str] = []
        self.lab = SimpleNamespace(dead="")
        self.lease = None
        self.facts = SimpleNamespace(emulated=True)
        self.directory = "/ours"
        self.transport = SimpleNamespace(run=lambda argv: None)

    def put_back(self, name: str, make: Callable[[], str], *, alone: bool = True, to_freeze: bool = False) -> Any:
        if name not in self.made:
            self.made[name] = make()
        self.restored.append(name)
        return SimpleNamespace(note=self.made[name])

    def rest(self, *, to_freeze: bool = False) -> None:
        self.restored.append(checkpoint.READY)

    def file(self, local: Path) -> None: ...

    def inventory(self) -> None: ...


@pytest.fixture
def lab(monkeypatch: pytest.MonkeyPatch) -> Lab:
    monkeypatch.setattr(rigs, "LabHost", Lab)
    return Lab()


@pytest.fixture
def rig(lab: Lab, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Rig:
    for name in ("vmlinuz", "initrd"):
        (tmp_path / name).write_text(name)
    made = Rig(SimpleNamespace(host="", xens=("4.20",), control=tmp_path))  # type: ignore[arg-type]
    monkeypatch.setattr(made, "_lab", lambda xen: lab)
    return made


def test_a_lab_is_put_back_once_it_was_used_and_only_then(rig: Rig, lab: Lab) -> None:
    rig.host(CELL)
    (rest,) = lab.made
    assert lab.restored[-1] == rest
    before = len(lab.restored)
    rig.host(CELL)
    assert len(lab.restored) == before, "it was not used"
    rig._resting.pop(CELL.host)
    rig.host(CELL)
    assert lab.restored[before:] == [rest]


def test_a_lab_whose_rest_was_made_for_a_warm_guest_is_put_back_all_the_same(rig: Rig, lab: Lab) -> None:
    rig._hosts[CELL.host] = lab  # type: ignore[assignment]
    rest, files = rig._rest(CELL, lab)  # type: ignore[arg-type]
    rig._put_to_rest(lab, rest, files)  # type: ignore[arg-type]
    lab.restored.clear()  # a warm guest is booted from there, and runs
    rig.host(CELL)
    assert lab.restored == [rest]
