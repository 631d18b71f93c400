# SPDX-License-Identifier: BSD-2-Clause
"""How fast a lab is: whole processes, medians, beside the bounds that were promised. Run by hand: python bench/lab.py

--build   also build a lab from scratch (in a store of its own; a minute or two)
--guest   also the restore of a checkpoint with a booted guest: the control guest
--image NAME   the same with a FreeBSD of the store (fxh image list)
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from harness import paths
from harness.guests.configure import configure
from harness.guests.guest import Guest
from harness.guests.os.freebsd_source import from_image
from harness.guests.os.linux import from_directory
from harness.guests.shape import Shape
from harness.guests.source import GuestSource
from harness.images import image as images
from harness.lab import checkpoint, criu_probe, factory
from harness.lab.checkpoint import CheckpointKind
from harness.lab.factory import LabSpec
from harness.lab.host import LabHost

FXH = [str(Path(sys.executable).parent / "fxh")]


def timed(argv: list[str], **environment: str) -> float:
    begun = time.monotonic()
    done = subprocess.run(argv, capture_output=True, env={**os.environ, **environment}, check=False)
    if done.returncode:
        raise SystemExit(done.stderr.decode())
    return time.monotonic() - begun


def line(what: str, runs: list[float], bound: str) -> None:
    low, high = min(runs), max(runs)
    print(f"{what:<58} {statistics.median(runs):8.2f} s  ({low:.2f} to {high:.2f}, {len(runs)} runs)   bound {bound}", flush=True)


def up(times: int) -> None:
    runs = []
    for _ in range(times):
        runs.append(timed([*FXH, "lab", "up", "bench", "--keep"]))
        timed([*FXH, "lab", "rm", "bench"])
    line("fxh lab up: start, restore, working ssh (whole process)", runs[1:], "1.0 s")


def first_commands() -> None:
    """What dom0 does first in a lab that was put back: from a hot checkpoint, and beside it from an ordinary one."""
    for wish, what in (("", "hot"), ("off", "ordinary")):
        os.environ["FXH_CRIU"] = wish
        criu_probe.find.cache_clear()
        kept, why = criu_probe.find()
        if not wish and kept is None:
            print(f"no hot checkpoints here: {why}")
            continue
        with factory.make(LabSpec()) as lab:
            lab.up()
            for command in (["xl", "list"], ["python3", "-c", "pass"]):
                runs = []
                for _ in range(7):
                    lab.checkpoints.reset()
                    begun = time.monotonic()
                    lab.ssh.run(command)
                    runs.append(time.monotonic() - begun)
                line(f"{what}: the first `{' '.join(command)}` of a lab put back", runs, "-")
    del os.environ["FXH_CRIU"]
    criu_probe.find.cache_clear()


def cold() -> None:
    runs = []
    for _ in range(3):
        with factory.make(LabSpec()) as lab:
            begun = time.monotonic()
            lab.boot()
            runs.append(time.monotonic() - begun)
    line("cold start to ssh", runs, "20 s")


def size() -> None:
    image = factory.image(LabSpec())
    lab = factory.make(LabSpec())
    ready = lab.checkpoints.find(CheckpointKind.READY)
    total = image.size + sum(p.stat().st_blocks * 512 for p in (image.directory / "control").iterdir())
    print(
        f"a stopped lab: image {total >> 20} MiB + ready checkpoint {ready.size >> 20 if ready else 0} MiB   bound 400 MB, image 250 MB"
    )


def guest(what: GuestSource, kinds: tuple[str, ...]) -> None:
    """A restored guest answers a shell command; beside it, in the same run, a fresh boot of the same guest."""
    with tempfile.TemporaryDirectory() as scratch, factory.make(LabSpec()) as lab:
        lab.up()
        host = LabHost(lab)
        for kind in kinds:
            begun = time.monotonic()
            config = configure(host, what, Shape(kind), f"fxh-bench-{kind}")
            first = Guest(host, what.profile, config, Path(scratch), scale=4).boot()
            first.sh("echo 1")
            fresh = time.monotonic() - begun
            first.detach()
            made = host.get_or_create(CheckpointKind.USER, f"bench-{kind}", lambda: "")
            runs = []
            for _ in range(7):
                begun = time.monotonic()
                lab.checkpoints.restore(made)
                again = Guest(host, what.profile, first.config, Path(scratch)).adopt(first.domid)
                again.sh("echo 1")
                runs.append(time.monotonic() - begun)
                again.detach()
            line(f"restore with a booted {what.label} {kind} to its answer", runs, "2 s")
            print(f"    a fresh boot of it took {fresh:.1f} s: {fresh / statistics.median(runs):.1f} times as long")
            checkpoint.remove(made.directory)
            host.restore_idle()


def build() -> None:
    with tempfile.TemporaryDirectory(dir=paths.store()) as store:
        line("fxh lab build, from nothing", [timed([*FXH, "lab", "build"], FXH_STORE=store)], "180 s")
        line("fxh lab build, cached (whole process)", [timed([*FXH, "lab", "build"], FXH_STORE=store) for _ in range(5)], "0 s")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--build", action="store_true")
    parser.add_argument("--guest", action="store_true")
    parser.add_argument("--image")
    chosen = parser.parse_args()
    factory.image(LabSpec())
    up(8)
    first_commands()
    cold()
    size()
    if chosen.guest:
        guest(from_directory(factory.control(LabSpec())), ("pv", "pvh"))
    if chosen.image:
        guest(from_image(images.find(chosen.image)), ("pvh",))
    if chosen.build:
        build()


if __name__ == "__main__":
    main()
