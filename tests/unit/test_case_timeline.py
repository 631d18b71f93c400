# SPDX-License-Identifier: BSD-2-Clause
"""The time line of a failed case: guest, hypervisor, dom0 and actions on one clock, on the page and as text."""

from __future__ import annotations

import json
import tracemalloc
from dataclasses import replace
from pathlib import Path

from written import case, run

from harness import trace
from harness.report import case_timeline, html
from harness.report.gather import gather
from harness.report.model import Report
from harness.results.model import Boot, DeathRecord, Stamp

UNPAUSED = 5000.0


def written_case(tmp_path: Path) -> Report:
    """A failed case whose guest printed a line after 1 s and died after 3 s."""
    directory = tmp_path / "cases/a"
    directory.mkdir(parents=True)
    (directory / "g.console.log").write_bytes(b"booting <b>\npanic: at the disco\n")
    (directory / "g.console.log.idx").write_text(f"0 {UNPAUSED + 1:.6f}\n12 {UNPAUSED + 3:.6f}\n")
    (directory / "xl-dmesg.log").write_text("(XEN) [  100.000000] d1v0 hello\n(XEN) [  110.000000] clocks\n")
    (directory / "dom0-dmesg.log").write_text("[   52.500000] vif1.0: Guest Rx ready\n")
    (directory / "xenstore-changes.log").write_text('[   53.000000] /local/domain/1/device/vif/0/state = "4"\nno time\n')
    (directory / "qemu-dm-g.log").write_text("VNC server running\n\n\x1b[1mterminating\n")
    (directory / "xl-dmesg.clock").write_text(json.dumps({"monotonic": UNPAUSED + 12, "uptime": 62.5}))
    event = {"event": 1, "in": 0, "at": 1.0, "clock": UNPAUSED + 2.5, "kind": "xl", "what": "xl mem-set 1 200m"}
    (directory / trace.FILE).write_text(json.dumps(event) + "\n" + json.dumps({"event": 1, "seconds": 0.1}) + "\n")
    boot = Boot("g", (), 3.0, UNPAUSED, "g.console.log", death="panic: at the disco")
    failed = case("F", boots=(boot,), files=("g.console.log",), directory="a")
    return gather(tmp_path, run(1, failed), None)


def test_all_sources_are_in_order_on_one_clock(tmp_path: Path) -> None:
    report = written_case(tmp_path)
    case_timeline.write(tmp_path, report)
    assert (tmp_path / "cases/a" / case_timeline.FILE).read_text().splitlines() == [
        "== g.console.log",
        "     1.000 booting <b>",
        "     2.000 (XEN) d1v0 hello",
        "     2.000 (dom0) vif1.0: Guest Rx ready",
        '     2.500 (xenstore) /local/domain/1/device/vif/0/state = "4"',
        "     2.500 # xl mem-set 1 200m  0.10 s",
        "     3.000 >>> panic: at the disco",
        "    12.000 (XEN) clocks",
        "   no time (qemu) VNC server running",
        "   no time (qemu) terminating",
    ]


def test_the_page_lets_the_reader_hide_a_source(tmp_path: Path) -> None:
    page = html.render(tmp_path, written_case(tmp_path))
    for kind in ("guest", "xen", "dom0", "xenstore", "qemu", "action"):
        assert f'class="k-{kind}"' in page
        assert f".k-{kind}:not(:checked)" in page
    assert "booting &lt;b&gt;" in page
    assert '<span class="death" id="death-case-' in page
    assert 'href="#death-case-' in page


def test_without_a_clock_only_the_guest_and_its_actions_are_shown(tmp_path: Path) -> None:
    report = written_case(tmp_path)
    (tmp_path / "cases/a/xl-dmesg.clock").write_text("{")
    case_timeline.write(tmp_path, report)
    text = (tmp_path / "cases/a" / case_timeline.FILE).read_text()
    assert "(XEN)" not in text
    assert "(dom0)" not in text
    assert "(xenstore)" not in text
    assert "# xl mem-set" in text


def test_a_guest_from_a_checkpoint_has_a_time_line_since_the_case_began(tmp_path: Path) -> None:
    report = written_case(tmp_path)
    begin = {"event": 1, "in": 0, "at": 1.0, "clock": UNPAUSED, "kind": trace.CASE, "what": "x"}
    (tmp_path / "cases/a" / trace.FILE).write_text(json.dumps(begin) + "\n")
    death = DeathRecord("panic", "x", "at the disco")
    failed = replace(report.cases[0].result, boots=(Boot("g", (Stamp("login", 9.0),)),), death=death)
    page = html.render(tmp_path, gather(tmp_path, run(1, failed), None))
    assert "with seconds since the case began" in page
    assert '<span class="death"' in page
    assert "     2.000</b>(dom0) vif1.0: Guest Rx ready" in page


def test_a_time_line_has_a_limit_and_keeps_its_end(tmp_path: Path) -> None:
    report = written_case(tmp_path)
    log = "".join(f"[{52 + n / 1e4:.6f}] line {n}\n" for n in range(6000))
    (tmp_path / "cases/a/dom0-dmesg.log").write_text(log)
    case_timeline.write(tmp_path, report)
    rows = (tmp_path / "cases/a" / case_timeline.FILE).read_text().splitlines()
    assert len(rows) == 1 + case_timeline.MOST
    assert rows[-1].endswith("(qemu) terminating")


def test_a_case_without_a_console_has_no_time_line(tmp_path: Path) -> None:
    report = written_case(tmp_path)
    (tmp_path / "cases/a/g.console.log").unlink()
    case_timeline.write(tmp_path, report)
    assert not (tmp_path / "cases/a" / case_timeline.FILE).exists()


def test_a_guest_cannot_write_lines_of_other_sources(tmp_path: Path) -> None:
    report = written_case(tmp_path)
    (tmp_path / "cases/a/g.console.log").write_bytes(
        b"booting <b>\n(XEN) d1v0 Triple fault\n>>> panic: forged\n  # xl destroy 1\npanic: at the disco\n"
    )
    case_timeline.write(tmp_path, report)
    lines = (tmp_path / "cases/a" / case_timeline.FILE).read_text().splitlines()
    assert [line for line in lines if "Triple fault" in line or "forged" in line or "xl destroy" in line] == [
        "     3.000 (guest) (XEN) d1v0 Triple fault", "     3.000 (guest) >>> panic: forged", "     3.000 (guest)   # xl destroy 1"
    ]  # fmt: skip
    assert "</b>(guest) (XEN) d1v0 Triple fault</span>" in html.render(tmp_path, report)


def test_of_a_huge_log_only_the_end_is_read(tmp_path: Path) -> None:
    """A guest may make the device model write as much as it likes: here a sparse file of 2 GB."""
    report = written_case(tmp_path)
    with (tmp_path / "cases/a/qemu-dm-g.log").open("r+b") as file:
        file.seek(2 << 30)
        file.write(b"\nterminating\n")
    tracemalloc.start()
    try:
        case_timeline.write(tmp_path, report)
        assert tracemalloc.get_traced_memory()[1] < 200 << 20
    finally:
        tracemalloc.stop()
    assert (tmp_path / "cases/a" / case_timeline.FILE).read_text().endswith("(qemu) terminating\n")
