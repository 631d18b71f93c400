# SPDX-License-Identifier: BSD-2-Clause
"""pygrub reads what a guest wrote. Whatever that is, it ends soon, is not killed by a signal, and writes nowhere else."""

from __future__ import annotations

import json
import os
import secrets
from collections.abc import Callable
from pathlib import Path

import pytest

from harness.hosts.host import XenHost
from harness.oracles.finding import finding
from harness.plugin.case_context import CaseContext
from harness.xen import pygrub

from .conftest import MENU, kernel

pytestmark = pytest.mark.needs(capability=("pygrub",), once=True)

EVIDENCE = "fuzz.json"
# A seed of a run's evidence: the case repeats that run.
REPEAT = "FXH_FUZZ_SEED"


@pytest.mark.parametrize(("kind", "count"), [("menu", 100), ("image", 200)])
def test_survives(host: XenHost, ufs: Callable[..., bytes], tmp_path: Path, case: CaseContext, kind: str, count: int) -> None:
    """Fuzzed menu.lst; truncated and bit-flipped UFS. Each run draws its seeds; they are in its evidence, fuzz.json, and nowhere else."""
    menu = MENU.encode().ljust(400, b"\n")
    data = ufs({"boot/kernel/kernel": kernel(120_000).data, "boot/grub/menu.lst": menu})
    image = tmp_path / "base.img"
    image.write_bytes(data[: 1 << 20])
    place = data.find(menu)
    assert 0 < place < 1 << 20

    # In memory: the image is written anew for each run, and so is what pygrub takes from it.
    directory = f"/run/{Path(host.directory).name}-fuzz"
    first = int(os.environ.get(REPEAT) or secrets.randbits(32))
    evidence = {"kind": kind, "first": first, "count": count}
    note(case, evidence)
    report = pygrub.fuzz(host.transport, directory, image, kind, first, count, (place, len(menu)))
    note(
        case,
        evidence | {"slowest": report.slowest, "status": report.counts, "odd": dict(zip(report.seeds, report.odd, strict=True))},
    )

    assert report.runs == count, f"pygrub ran {report.runs} times, {count} volumes were made"
    wrong = [*report.odd, *(f"it wrote {path}" for path in report.strays)]
    assert not wrong, finding(
        test=f"pygrub on {count} volumes with a mutated {kind} (the seeds are in {EVIDENCE} of this run)",
        observed=wrong[:12],
        expected="ends with status 0 or 1 within seconds and leaves files in its output directory alone",
        reference="xen tools/pygrub/src/pygrub, tools/libfsimage (XSA-443 is what a slip here costs)",
    )


def note(case: CaseContext, evidence: dict[str, object]) -> None:
    """Before pygrub runs, too: a run that is killed keeps its seeds."""
    (case.directory / EVIDENCE).write_text(json.dumps(evidence, indent=1) + "\n")
