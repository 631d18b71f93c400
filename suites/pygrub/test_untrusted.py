# SPDX-License-Identifier: BSD-2-Clause
"""pygrub on data that a guest may have written: it ends soon, no signal kills it, and it writes only its own files."""

from __future__ import annotations

import json
import os
import secrets
from pathlib import Path

import pytest

from harness.errors import UsageError
from harness.hosts.host import XenHost
from harness.oracles.finding import finding, precondition
from harness.plugin.case_context import CaseContext
from harness.xen import pygrub

from .support import KERNEL, MENU, MakeUfs, make_kernel

pytestmark = [pytest.mark.needs(capability=("pygrub",), once=True), pytest.mark.any_kernel]

EVIDENCE = "fuzz.json"
# The environment variable with the first seed of an earlier run's evidence: the case repeats that run.
SEED_VARIABLE = "FXH_FUZZ_SEED"


@pytest.mark.parametrize(("kind", "count"), [("menu", 100), ("image", 200)])
def test_survives(host: XenHost, make_ufs: MakeUfs, tmp_path: Path, case: CaseContext, kind: str, count: int) -> None:
    """pygrub survives fuzzed menu.lst files, and UFS images that are truncated or have flipped bits.

    Each run draws new seeds and keeps them only in its evidence, fuzz.json.

    Source: xen tools/pygrub/src/pygrub; tools/libfsimage
    Catches: a hang or SIGFPE on a damaged UFS (known issue); bugs like XSA-443
    """
    menu = MENU.encode().ljust(400, b"\n")
    data = make_ufs({KERNEL: make_kernel(120_000).data, "boot/grub/menu.lst": menu})
    image = tmp_path / "base.img"
    image.write_bytes(data[: 1 << 20])
    place = data.find(menu)
    precondition(0 < place < 1 << 20, f"menu.lst is at byte {place}, outside of the first MiB that the fuzzer mutates")

    # In memory, because each run writes the image and its output again.
    directory = f"/run/{Path(host.directory).name}-fuzz"
    first = first_seed()
    evidence = {"kind": kind, "first": first, "count": count}
    write_evidence(case, evidence)
    report = pygrub.fuzz(host.transport, directory, image, kind, first, count, (place, len(menu)))
    odd = dict(zip(report.seeds, report.odd, strict=True))
    write_evidence(case, evidence | {"slowest": report.slowest, "status": report.counts, "odd": odd})

    precondition(report.runs == count, f"the fuzzer ran pygrub {report.runs} times instead of {count} times")
    wrong = [*report.odd, *(f"pygrub wrote {path}" for path in report.strays)]
    assert not wrong, finding(
        test=f"pygrub on {count} volumes with a mutated {kind} (the seeds are in {EVIDENCE} of this run)",
        observed=wrong[:12],
        expected="pygrub ends with status 0 or 1 within seconds and writes only to its output directory",
        reference="xen tools/pygrub/src/pygrub, tools/libfsimage (XSA-443 shows the cost of a bug here)",
    )


def first_seed() -> int:
    """The first seed of this run, or of the run that :data:`SEED_VARIABLE` repeats. Raises UsageError."""
    given = os.environ.get(SEED_VARIABLE, "")
    if given and not given.isdecimal():
        raise UsageError(f"{SEED_VARIABLE}={given!r} is no number", hint=f"take `first` from {EVIDENCE} of a run")
    return int(given) if given else secrets.randbits(32)


def write_evidence(case: CaseContext, evidence: dict[str, object]) -> None:
    """Write the seeds and results. The first call comes before pygrub runs, so that a run that is killed keeps its seeds."""
    (case.directory / EVIDENCE).write_text(json.dumps(evidence, indent=1) + "\n")
