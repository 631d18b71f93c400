# SPDX-License-Identifier: BSD-2-Clause
"""How a worker's lab is put back between cases; the lab is played here."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from harness.errors import TransportError
from harness.guests.guest import Guest
from harness.guests.shape import Shape
from harness.lab import checkpoint
from harness.plugin import rig as rigs
from harness.plugin.cells import Cell
from harness.plugin.rig import Rig
from harness.xen.config import DomainConfig

CELL = Cell("control", "pv", "xen-4.20", "4.20")


class Lab:
    """Remembers which checkpoints there are, and which it was put back to."""

    def __init__(self, place: Path) -> None:
        self.place = place
        self.made: dict[str, str] = {}
        self.restored: list[str] = []
        self.lab = SimpleNamespace(dead="")
        self.lease = None
        self.facts = SimpleNamespace(emulated=True)
        self.directory = "/ours"
        self.transport = SimpleNamespace(run=lambda argv: None)

    def restore_or_create(
        self, name: str, make: Callable[[], str], *, alone: bool = True, private_memory: bool = False, what: str = ""
    ) -> Any:
        if name not in self.made:
            self.made[name] = make()
        self.restored.append(name)
        directory = self.place / name
        directory.mkdir(exist_ok=True)
        return SimpleNamespace(note=self.made[name], directory=directory)

    def rest(self, *, private_memory: bool = False) -> None:
        self.restored.append(checkpoint.READY)

    def files(self, *local: Path) -> None: ...

    def inventory(self) -> None: ...


@pytest.fixture
def lab(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Lab:
    monkeypatch.setattr(rigs, "LabHost", Lab)
    return Lab(tmp_path)


@pytest.fixture
def rig(lab: Lab, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Rig:
    for name in ("vmlinuz", "initrd"):
        (tmp_path / name).write_text(name)
    made = Rig(SimpleNamespace(host="", xens=("4.20",), control=tmp_path, scale=1.0))  # type: ignore[arg-type]
    monkeypatch.setattr(made, "_lab", lambda xen: lab)
    return made


def test_a_lab_is_put_back_once_it_was_used_and_only_then(rig: Rig, lab: Lab) -> None:
    rig.host(CELL)
    (rest,) = lab.made
    assert lab.restored[-1] == rest
    before = len(lab.restored)
    rig.host(CELL)
    assert len(lab.restored) == before, "it was not used"
    rig.used(CELL)
    rig.host(CELL)
    assert lab.restored[before:] == [rest]


def test_a_lab_whose_rest_was_made_for_a_warm_guest_is_put_back_all_the_same(rig: Rig, lab: Lab) -> None:
    rig._hosts[CELL.host] = lab  # type: ignore[assignment]
    rest, files = rig._rest(CELL, lab)  # type: ignore[arg-type]
    rig._put_to_rest(lab, rest, files)  # type: ignore[arg-type]
    lab.restored.clear()  # a warm guest is booted from there, and runs
    rig.host(CELL)
    assert lab.restored == [rest]


def test_a_checkpoint_whose_guest_s_console_cannot_be_had_is_made_anew(
    rig: Rig, lab: Lab, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    note = json.dumps({"config": asdict(DomainConfig("g", "pv", 160)), "domid": 2, "stages": [], "prepared": None})
    monkeypatch.setattr(rig, "_boot_warm", lambda *args: note)

    def locked(guest: Guest, domid: int) -> Guest:
        raise TransportError("Could not lock /var/lock/xenconsole.2")

    monkeypatch.setattr(Guest, "adopt", locked)
    with pytest.raises(TransportError):
        rig._warm_guest(CELL, lab, "warm-1", tmp_path, Shape("pv"), None)  # type: ignore[arg-type]
    assert not (tmp_path / "warm-1").exists()
