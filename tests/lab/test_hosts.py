"""A lab as a plain remote host: what is known and removed there without booting a guest. More: tests/faults."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from remote import Remote

HOLDER = """
import sys, time
from harness.deadline import Deadline
from harness.hosts import connect
from harness.hosts.lease import Wish
host = connect.direct("one", "alive", "a test")
host.acquire(Wish("", 300), Deadline(60))
host.prepare()
print("held", flush=True)
time.sleep(300)
"""

PLANT = """
mkdir -p /var/lib/fxh/run-dead; truncate -s 1M /var/lib/fxh/run-dead/disk; losetup -f /var/lib/fxh/run-dead/disk
for n in fxh-dead-1-x fxh-alive-1-x not-ours; do
  printf 'name="%s"\\ntype="pv"\\nkernel="/bin/busybox"\\nmemory=32\\n' $n > /tmp/$n.cfg; xl create -p /tmp/$n.cfg
done; true
"""


@pytest.fixture
def remote() -> Iterator[Remote]:
    with tempfile.TemporaryDirectory(prefix="fxh-remote-") as directory:
        made = Remote(Path(directory), f"remote-{os.getpid()}")
        yield made
        made.remove()


def test_leases_are_seen_and_only_what_nobody_owns_is_removed(remote: Remote) -> None:
    assert {c["status"] for c in json.loads(remote.fxh("doctor", "one", "--json"))["one"] if c["name"] != "clock"} == {"ok"}
    holder = subprocess.Popen([sys.executable, "-c", HOLDER], env=remote.environment, stdout=subprocess.PIPE, text=True)
    assert holder.stdout is not None
    assert holder.stdout.readline() == "held\n"
    # A PV domain of something that is no kernel cannot be built: a paused one of the control kernel would take seconds.
    remote.dom0(PLANT)
    listing = remote.fxh("hosts", "one")
    assert "300/" in listing
    assert "run alive  a test" in listing
    said = remote.fxh("clean", "one")
    assert "run dead: loop /dev/loop0" in said
    assert "nothing was removed" in said
    assert "alive" not in said
    assert "removed" in remote.fxh("clean", "one", "--yes")
    assert not [line for line in remote.leftovers() if "dead" in line]
    assert [line for line in remote.leftovers() if "alive" in line]

    holder.kill()
    holder.wait()
    remote.wait_clean(30)


def test_what_the_doctor_says_of_a_sick_host(remote: Remote) -> None:
    remote.dom0("kill $(pidof xenconsoled); ip link del xenbr0")
    checks = {c["name"]: c["status"] for c in json.loads(remote.fxh("doctor", "one", "--json", check=False))["one"]}
    assert {name for name, status in checks.items() if status == "fail"} == {"xenconsoled", "bridge"}
