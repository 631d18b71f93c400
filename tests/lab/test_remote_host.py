# SPDX-License-Identifier: BSD-2-Clause
"""A lab as a remote host: leases, cleanup and doctor, without booting a guest. See also tests/faults."""

from __future__ import annotations

import base64
import gzip
import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from remote_host import Remote, remote_host

HOLDER = """
import sys
from harness.deadline import Deadline
from harness.hosts import connect
from harness.hosts.lease import LeaseRequest
host = connect.direct("one", "alive", "a test")
host.acquire(LeaseRequest("", 300), Deadline(60))
host.make_directory()
print("held", flush=True)
sys.stdin.read()  # until the test ends
"""

PLANT = """
mkdir -p /var/lib/fxh/run-dead; truncate -s 1M /var/lib/fxh/run-dead/disk; losetup -f /var/lib/fxh/run-dead/disk
echo {kernel} | base64 -d | gzip -d > /tmp/kernel
for n in fxh-dead-1-x fxh-alive-1-x not-ours; do
  printf 'name="%s"\\ntype="pvh"\\nkernel="/tmp/kernel"\\nmemory=32\\n' $n > /tmp/$n.cfg; xl create -p /tmp/$n.cfg >/dev/null; rm /tmp/$n.cfg
done
"""


@pytest.fixture(scope="module")
def _remote() -> Iterator[Remote]:
    with remote_host("remote") as made:
        yield made


@pytest.fixture
def remote(_remote: Remote) -> Remote:
    """A host with an idle dom0."""
    _remote.reset()
    return _remote


def test_leases_are_listed_and_only_resources_without_an_owner_are_removed(remote: Remote, assemble: Callable[[str], Path]) -> None:
    checks = {c["name"]: c["status"] for c in json.loads(remote.fxh("doctor", "one", "--json"))["one"] if c["name"] != "clock"}
    # The dom0 of a lab has no UEFI firmware: the harness sends its own to a guest that needs one.
    assert {name: status for name, status in checks.items() if status != "ok"} == {"UEFI": "warn"}
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLDER], env=remote.environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert holder.stdout is not None
    assert holder.stdout.readline() == "held\n"
    kernel = base64.b64encode(gzip.compress(assemble("cr4").read_bytes())).decode()
    remote.dom0(PLANT.format(kernel=kernel))
    listing = remote.fxh("hosts", "one")
    assert "300/" in listing
    assert "run alive  a test" in listing
    said = remote.fxh("clean", "one")
    assert {line.split(": ", 2)[2] for line in said.splitlines() if "run dead" in line} == {
        "domain fxh-dead-1-x", "loop /dev/loop0", "directory /var/lib/fxh/run-dead",
    }  # fmt: skip
    assert "nothing was removed" in said
    assert "alive" not in said
    assert "removed" in remote.fxh("clean", "one", "--yes")
    left = "\n".join(remote.leftovers())
    assert "dead" not in left
    assert "fxh-alive-1-x" in left

    holder.kill()
    holder.wait()
    remote.wait_clean()
    assert "not-ours" in remote.dom0("xl list")


def test_the_doctor_reports_defects_of_a_host(remote: Remote) -> None:
    remote.dom0("kill $(pidof xenconsoled)")
    (remote.directory / "fxh.toml").write_text('[hosts.one]\nbridge = "xenbr7"\n')
    checks = {c["name"]: c["status"] for c in json.loads(remote.fxh("doctor", "one", "--json", check=False))["one"]}
    assert {name for name, status in checks.items() if status == "fail"} == {"xenconsoled", "bridge"}
