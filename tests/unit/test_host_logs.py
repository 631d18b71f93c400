# SPDX-License-Identifier: BSD-2-Clause
"""The lines that a case added to the logs of dom0 and Xen, and the complaints in them."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest
from quiet_host import Host

from harness.console.complaints import DOM0, XEN, complaints
from harness.hosts import inventory, logs
from harness.hosts.logs import LogMark
from harness.plugin import case_complaints
from harness.plugin.case_context import CaseContext

DATA = Path(__file__).parent / "data"
LOG = "[    1.000000] eth0: old\n[   12.000000] vif vif-3-0 vif3.0: Guest Rx stalled\nno time\n[   13.000000] eth0: new\n"


def test_lines_of_dom0_are_found_by_their_age() -> None:
    assert logs.dom0_since(LOG, 20.0, 9.0) == "vif vif-3-0 vif3.0: Guest Rx stalled\neth0: new\n"
    assert logs.dom0_since(LOG, 20.0, 7.5) == "eth0: new\n"
    assert logs.dom0_since(LOG, 20.0, 1.0) == ""


def test_the_old_end_of_xens_log_is_found_again() -> None:
    old = "".join(f"(XEN) line {n}\n" for n in range(900))
    mark = LogMark.of(0.0, old)
    assert logs.xen_since(old, mark) == ""
    assert logs.xen_since(old + "(XEN) new\n", mark) == "(XEN) new\n"
    assert logs.xen_since(old[5000:] + "(XEN) new\n", mark) == "(XEN) new\n", "the ring lost its beginning"
    assert logs.xen_since("(XEN) new\n", mark) == "(XEN) new\n", "the ring lost it all"
    assert logs.xen_since("(XEN) first\n", LogMark.of(0.0, "")) == "(XEN) first\n"


def test_the_inventory_takes_no_item_from_the_log() -> None:
    text = "%domains\nDomain-0 0 768 1 r----- 1.0\n%files\n%log\n61.25\n[    1.0] x\n%domains\n%vifs\nvif9.0\n"
    found = inventory.parse(text)
    assert (found.items, found.uptime) == (frozenset(), 61.25)
    assert found.log.endswith("%domains\n%vifs\nvif9.0\n")
    assert inventory.parse("%domains\n%log\nno stamps\n").uptime == 0.0, "a FreeBSD dom0"


def test_a_case_has_complaints_of_its_host(tmp_path: Path) -> None:
    xen = "(XEN) old\n"

    class Real(Host):
        def hypervisor_log(self) -> str:
            return xen

    host: Any = Real()
    context = CaseContext(tmp_path)
    context.use(host)
    assert context.mark is not None
    context.mark = LogMark(time.monotonic() - 9.0, context.mark.xen)
    xen += "(XEN) [   12.345678] Xen WARN at arch/x86/x.c:12\n"
    context.read_logs(host, inventory.Inventory(frozenset(), (), LOG, 20.0))
    found = case_complaints.find(tmp_path, context.logs) or ()
    assert [(one.source, one.identity) for one in found] == [
        ("dom0", "dom0 netback: vif vif-#-# vif#.#: Guest Rx stalled"),
        ("xen", "xen Xen WARN: arch/x#/x.c"),
    ]
    assert case_complaints.find(tmp_path, {}) is None


@pytest.mark.parametrize("source", [DOM0, XEN])
def test_logs_of_cases_that_passed_have_no_complaint(source: str) -> None:
    """Boots, panics, shutdowns, hot-plug, detached disks in use, ballooning and traffic of the control guest."""
    text = (DATA / f"passed-{source}.log").read_text()
    assert len(text.splitlines()) > 50
    assert complaints(text, source) == ()


def test_errors_of_a_broken_frontend_are_complaints() -> None:
    """Recorded in a lab, after xenstore-write had named grants and event channels that do not exist."""
    found = complaints((DATA / "broken-frontend-dom0.log").read_text(), DOM0)
    assert [one.identity for one in found] == [
        "dom0 xenbus: vbd vbd-#-#: # mapping in shared page # from domain #",
        "dom0 xenbus: vbd vbd-#-#: # mapping ring-ref port #",
        "dom0 Linux WARNING: drivers/block/xen-blkback/xenbus.c / xen_blkif_disconnect",
        "dom0 xenbus: vif vif-#-#: # mapping in shared page # from domain #",
        "dom0 xenbus: vif vif-#-#: # mapping shared-frames #/# port tx # rx #",
        "dom0 xenbus: vbd vbd-#-#: -# unknown fe protocol nonsense",
    ]
    assert any("RIP: e030:xen_blkif_disconnect" in line for line in found[2].detail)
