# SPDX-License-Identifier: BSD-2-Clause
"""How long it takes to acquire a place of a labgrid coordinator on loopback, with 100 places. Exit code 1 over a bound."""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests" / "faults"))

from labgrid_servers import Labgrid

from harness.deadline import Deadline
from harness.labgrid import place

PLACES, TRIES = 100, 5
# Seconds to acquire one of the places; and seconds of `fxh list` that 100 places in fxh.toml may add.
ACQUIRE, STARTUP = 1.0, 0.1


def startup(places: int) -> float:
    """Seconds of the best of some tries to read a configuration with ``places`` hosts and to select them all."""
    with tempfile.TemporaryDirectory() as directory:
        config = Path(directory) / "fxh.toml"
        config.write_text(
            "".join(f'[hosts.h{n}]\naddress = "labgrid:name=p{n}"\ntags = ["all"]\n' for n in range(places)) or "[run]\n"
        )
        code = "from harness.config import load; from harness.hosts import pool; h = load().config.hosts; pool.select_hosts(','.join(h), h)"
        found = []
        for _ in range(TRIES):
            begun = time.perf_counter()
            subprocess.run(
                [sys.executable, "-c", code], env={"FXH_CONFIG": str(config), "PYTHONPATH": ":".join(sys.path)}, check=True
            )
            found.append(time.perf_counter() - begun)
        return min(found)


def acquire() -> tuple[float, float]:
    """Seconds of the slowest of some tries to acquire and to release a place."""
    with tempfile.TemporaryDirectory() as directory:
        servers = Labgrid(
            Path(directory), {f"g{n}": {"NetworkService": {"address": "192.0.2.1", "username": "root"}} for n in range(PLACES)}
        )
        try:
            for n in range(PLACES):
                servers.add_place(f"p{n}", f"g{n}", tag="xen", arch="amd64" if n % 2 else "arm64")
            taken, given = [], []
            for _ in range(TRIES):
                begun = time.perf_counter()
                held = place.acquire("labgrid:tag=xen,arch=amd64", servers.address, Deadline(60))
                taken.append(time.perf_counter() - begun)
                begun = time.perf_counter()
                held.end()
                given.append(time.perf_counter() - begun)
            return max(taken), max(given)
        finally:
            servers.close()


def main() -> int:
    more = startup(PLACES) - startup(0)
    taken, given = acquire()
    print(f"{PLACES} places in fxh.toml add {more:.3f} s to the start (bound {STARTUP} s)")
    print(f"acquire one of {PLACES} places: {taken:.2f} s (bound {ACQUIRE} s), release: {given:.2f} s")
    return int(taken > ACQUIRE or more > STARTUP)


if __name__ == "__main__":
    sys.exit(main())
