# SPDX-License-Identifier: BSD-2-Clause
"""A case whose data does not arrive says why: in its result, in the mail, on the page and in its files."""

from __future__ import annotations

import email
import json
import subprocess
import sys
from email.policy import default
from pathlib import Path

from tests.conftest import planted_suite

FXH = [sys.executable, "-c", "from harness.cli.main import main; main()"]
CASES = '''
"""Planted."""
from harness.guests.link import Link
from harness.hosts import scratch as scratches
from harness.guests import hotplug
from harness.xen.config import Disk

def test_link(guest):
    link = Link(guest).up()
    assert link.wait_up(), "the link never came up"
    assert link.download(4096).complaint == ""
    link.dom0("tc", "qdisc", "replace", "dev", link.vif, "root", "netem", "loss", "100%")
    assert link.wait_up(2), "observed:  the link is gone"

def test_disk(guest, scratch):
    (disk,) = scratch("xvdc")
    guest.host.transport.run(["truncate", "-s", "0", disk.file])
    name = hotplug.disk(guest, Disk(disk.target, "xvdc"))
    assert guest.run(f"dd if=/dev/{name} of=/dev/null bs=4096 count=1", check=False).status == 0, f"{name} cannot be read"
'''


def test_the_cause_reaches_the_reader(tmp_path: Path) -> None:
    with planted_suite(CASES) as suite:
        argv = [*FXH, "run", str(suite), "--type", "pv", "--guest", "control", "--reports", str(tmp_path)]
        done = subprocess.run(
            argv, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, stdin=subprocess.DEVNULL, timeout=300
        )
    assert done.returncode == 1, done.stdout
    latest = tmp_path / "latest"
    cases = {
        json.loads(path.read_text())["case"]: (json.loads(path.read_text()), path.parent)
        for path in latest.glob("cases/*/case.json")
    }
    words = {"test_link": "dom0's queue of vif", "test_disk": "dom0 could not read or write loop"}
    text = email.message_from_bytes((latest / "mail.eml").read_bytes(), policy=default).get_content()
    page = (latest / "index.html").read_text()
    for name, cause in words.items():
        case, directory = cases[name]
        assert f"cause:     {cause}" in case["reason"]
        assert "counted:   " in case["reason"]
        kind = "network" if name == "test_link" else "disks"
        (file,) = directory.glob(f"{kind}-*.txt")
        assert cause in file.read_text()
        assert cause.replace("'", "&#39;") in page
        assert cause in " ".join(text.split())
