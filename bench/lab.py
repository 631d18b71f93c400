# SPDX-License-Identifier: BSD-2-Clause
"""Measures a lab: the median time of whole processes, with its range and the bound it must meet. Run it by hand: python bench/lab.py

--build   also build a lab from scratch, in a separate store (minutes)
--guest   also restore a checkpoint with the booted control guest
--image NAME   also restore a checkpoint with a booted FreeBSD image of the store (fxh image list)
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
from harness.guests.domain_config import build_domain_config
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
    line("fxh lab up, until ssh works (whole process)", runs[1:], "1.0 s")


def first_commands() -> None:
    """The first command in dom0 after a restore, from a hot and from a cold checkpoint."""
    for wish, what in (("", "hot"), ("off", "cold")):
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
                line(f"first `{' '.join(command)}` after a restore, {what} checkpoint", runs, "-")
    del os.environ["FXH_CRIU"]
    criu_probe.find.cache_clear()


def cold() -> None:
    runs = []
    for _ in range(3):
        with factory.make(LabSpec()) as lab:
            begun = time.monotonic()
            lab.boot()
            runs.append(time.monotonic() - begun)
    line("boot of a lab, until ssh works", runs, "20 s")


def size() -> None:
    image = factory.image(LabSpec())
    lab = factory.make(LabSpec())
    ready = lab.checkpoints.find(CheckpointKind.READY)
    used = image.size + (ready.size if ready else 0)
    print(
        f"disk use of a stopped lab: image {image.size >> 20} MiB (bound 250 MB), with checkpoint {used >> 20} MiB (bound 400 MB)"
    )


def guest(what: GuestSource, kinds: tuple[str, ...]) -> None:
    """The first shell command of a restored guest, compared with a fresh boot of the same guest."""
    with tempfile.TemporaryDirectory() as scratch, factory.make(LabSpec()) as lab:
        lab.up()
        host = LabHost(lab)
        for kind in kinds:
            begun = time.monotonic()
            config = build_domain_config(host, what, Shape(kind), f"fxh-bench-{kind}")
            first = Guest(host, what.os, config, Path(scratch), scale=4).boot()
            first.sh("echo 1")
            fresh = time.monotonic() - begun
            first.detach()
            made = host.get_or_create(CheckpointKind.USER, f"bench-{kind}", lambda: "")
            runs = []
            for _ in range(7):
                begun = time.monotonic()
                lab.checkpoints.restore(made)
                again = Guest(host, what.os, first.config, Path(scratch)).adopt(first.domid)
                again.sh("echo 1")
                runs.append(time.monotonic() - begun)
                again.detach()
            line(f"restore with a booted {what.label} {kind}, until it answers", runs, "2 s")
            print(f"    a fresh boot takes {fresh:.1f} s: {fresh / statistics.median(runs):.1f} times as long")
            checkpoint.remove(made.directory)
            host.restore_idle()


def build() -> None:
    with tempfile.TemporaryDirectory(dir=paths.store()) as store:
        line("fxh lab build, empty store", [timed([*FXH, "lab", "build"], FXH_STORE=store)], "180 s")
        line("fxh lab build, unchanged (whole process)", [timed([*FXH, "lab", "build"], FXH_STORE=store) for _ in range(5)], "0 s")


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
