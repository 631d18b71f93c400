# SPDX-License-Identifier: BSD-2-Clause
"""Xen's call traces: of a panic recorded in our lab, of WARN and BUG, and of debug key d."""

from __future__ import annotations

import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from harness.console import xentrace
from harness.console.xentrace import panic, traces
from harness.errors import InfrastructureError, LabDead
from harness.plugin import backtraces
from harness.plugin.case_context import CaseContext
from harness.xen.symbolizer import Line

DATA = Path(__file__).parent / "data"
PANIC = (DATA / "xen-4.20-panic.log").read_text()
# Debug key d in the forms of Xen's keyhandler.c and traps.c.
DUMP = """\
(XEN) 'd' pressed -> dumping registers
(XEN)
(XEN) *** Dumping CPU1 host state: ***
(XEN) ----[ Xen-4.20.5  x86_64  debug=n  Not tainted ]----
(XEN) CPU:    1
(XEN) RIP:    e008:[<ffff82d040327d11>] acpi_idle_do_entry+0xa1/0xb0
(XEN) Xen call trace:
(XEN)    [<ffff82d040327d11>] R acpi_idle_do_entry+0xa1/0xb0
(XEN)    [<ffff82d0403282e0>] F arch/x86/acpi/cpu_idle.c#acpi_processor_idle+0x2a0/0x610
(XEN)    [<000000000005f5b2>] S 000000000005f5b2
(XEN)
(XEN) *** Dumping CPU1 guest state (d3v0): ***
(XEN) RIP:    0010:[<ffffffff81454663>]
"""


def test_a_recorded_panic() -> None:
    (trace,) = traces(PANIC)
    assert trace.panic
    assert trace.title == "CPU 0: FATAL TRAP: vector = 6 (invalid opcode)"
    assert [frame.function for frame in trace.frames] == [
        "dump_runq", "handle_keypress", "do_sysctl", "get_page_from_l1e", "mod_l1_entry.isra.0", "do_mmu_update", "pv_hypercall",
        "update_cr3", "lstar_enter",
    ]  # fmt: skip
    first, second = trace.frames[:2]
    assert (first.offset, first.address, first.exact) == ("0x0", "0xffff82d04024ff60", True)
    assert (second.offset, second.address, second.exact) == ("0xa0", "0xffff82d04022e860", False), "a return address"
    assert panic(PANIC) == "FATAL TRAP: vector = 6 (invalid opcode) in dump_runq()"


def test_the_forms_of_console_timestamps_make_no_difference() -> None:
    """console_timestamps= of Xen's command line: none, boot, date, datems and raw (xen/drivers/char/console.c)."""
    for stamp in ("", "[   12.345678] ", "[2026-12-01 04:50:00] ", "[2026-12-01 04:50:00.123] ", "[000000123456789a] "):
        stamped = re.sub(r"^\(XEN\) (?:\[[^\]]*\] )?", f"(XEN) {stamp}", PANIC, flags=re.MULTILINE)
        assert panic(stamped) == panic(PANIC) != "", stamp


def test_a_panic_counts_only_at_the_end_of_the_console() -> None:
    assert panic(PANIC + "(XEN) Xen version 4.20.5\n" * 10) == "", "the lab was started again"
    assert panic("") == panic(DUMP) == ""


def test_debug_key_d() -> None:
    (trace,) = traces(DUMP)
    assert trace.title == "CPU 1: its state, by debug key d"
    assert [(frame.function, frame.address) for frame in trace.frames] == [
        ("acpi_idle_do_entry", "0xffff82d040327d11"), ("acpi_processor_idle", "0xffff82d0403282e0"), ("", "0x000000000005f5b2"),
    ]  # fmt: skip


def test_recorded_states_of_an_idle_cpu() -> None:
    """Debug key d on the serial console of an idle lab, with the characters that its emulated port repeated."""
    (trace,) = traces((DATA / "xen-4.20-debug-key-d.log").read_text())
    assert (trace.title, trace.panic) == ("CPU 0: its state, by debug key d", False)
    functions = [
        "ns16550_poll",
        "execute_timer",
        "timer_softirq_action",
        "__do_softirq",
        "idle_loop",
        "idle_loop",
        "context_switch",
    ]
    assert [frame.function for frame in trace.frames] == functions


def test_a_frame_with_a_bad_character_is_left_out() -> None:
    (trace,) = traces(DUMP.replace("ffff82d0403282e0", "ffff82d04032882e0"))
    assert [frame.address for frame in trace.frames] == ["0xffff82d040327d11", "0x000000000005f5b2"]


@pytest.mark.parametrize("stamp", ["", "[2026-12-01 05:00:00] ", "[2026-12-01 05:00:00.123] ", "[   54.859377] "])
def test_each_form_of_time_stamp(stamp: str) -> None:
    rows = ("Xen BUG at common/sched/core.c:123", "CPU:    3", "Xen call trace:", "   [<ffff82d04024ff60>] schedule+0x12/0x40", "")
    (trace,) = traces("".join(f"(XEN) {stamp}{row}\n" for row in rows))
    assert (trace.title, trace.panic) == ("CPU 3: Xen BUG at common/sched/core.c:123", False)
    assert [(frame.function, frame.offset) for frame in trace.frames] == [("schedule", "0x12")]


@pytest.mark.parametrize("text", ["(XEN) Xen call trace:\n", "(XEN) Xen call trace:\n(XEN)    [<zz>] R f+0/1\n", "Xen call trace:\n   [<ffff82d04024ff60>] R f+0/1\n"])  # fmt: skip
def test_no_trace(text: str) -> None:
    assert traces(text) == ()


# -- the evidence -----------------------------------------------------------------------------------------------------


@pytest.fixture
def context(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> CaseContext:
    monkeypatch.setenv("FXH_STORE", str(tmp_path / "store"))
    (tmp_path / "case").mkdir()
    facts = SimpleNamespace(build_id="")
    return CaseContext(tmp_path / "case", host=SimpleNamespace(facts=facts, symbol_files=()))  # type: ignore[arg-type]


def written(context: CaseContext) -> str:
    path = context.directory / backtraces.XEN_BACKTRACE
    return path.read_text() if path.exists() else ""


def test_without_symbols_the_names_of_xen_and_the_reason_remain(context: CaseContext) -> None:
    (context.directory / backtraces.SERIAL_LOGS[0]).write_text(PANIC)
    backtraces.hypervisor(context)
    text = written(context)
    assert text.startswith("no source lines: no symbols of this Xen (build-id unknown)")
    assert "CPU 0: FATAL TRAP: vector = 6 (invalid opcode)\n#0  dump_runq+0x0\n#1  handle_keypress+0xa0\n" in text


def test_with_symbols_each_frame_has_its_line(context: CaseContext, monkeypatch: pytest.MonkeyPatch) -> None:
    (context.directory / backtraces.SERIAL_LOGS[0]).write_text(PANIC)
    monkeypatch.setattr(backtraces.KernelSymbols, "debug", Path("xen-syms"))
    monkeypatch.setattr(backtraces.KernelSymbols, "addresses", lambda self, names: {})
    monkeypatch.setattr(backtraces, "has_lines", lambda path: True)
    asked: list[int] = []

    def lookup(debug: Path, addresses: list[int], seconds: float) -> Any:
        asked.extend(addresses)
        return tuple((Line("inner", "a.h", 1), Line(f"f{address:x}", "a.c", 2)) for address in addresses)

    monkeypatch.setattr(backtraces.sourcelines.symbolizer, "lookup", lookup)
    backtraces.hypervisor(context)
    assert "#0  inner (a.h:1)  [inlined]\n#0  fffff82d04024ff60 (a.c:2)\n" in written(context)
    assert asked[:2] == [0xFFFF82D04024FF60, 0xFFFF82D04022E85F], "the call is before its return address"


def test_symbols_without_lines_say_so(context: CaseContext, monkeypatch: pytest.MonkeyPatch) -> None:
    (context.directory / backtraces.XEN_LOG).write_text(DUMP)
    monkeypatch.setattr(backtraces.KernelSymbols, "debug", Path("xen-syms"))
    monkeypatch.setattr(backtraces, "has_lines", lambda path: False)
    monkeypatch.setattr(backtraces.sourcelines, "backtraces", lambda traces, symbols: [[] for _ in traces])
    backtraces.hypervisor(context)
    assert written(context).startswith("no source lines: xen-syms has no line tables\n\nCPU 1: its state, by debug key d\n#0  acpi")


def test_the_serial_console_of_earlier_cases_does_not_count(context: CaseContext) -> None:
    (context.directory / backtraces.SERIAL_LOGS[0]).write_text(DUMP)
    (context.directory / backtraces.XEN_LOG).write_text("(XEN) Xen version 4.20.5\n")
    backtraces.hypervisor(context)
    assert written(context) == ""


@pytest.mark.parametrize("error", [LabDead("gone"), InfrastructureError("no answer")])
def test_a_host_that_is_gone_has_an_unknown_build(context: CaseContext, error: Exception) -> None:
    class Gone:
        symbol_files = ()

        @property
        def facts(self) -> Any:
            raise error

    context.host = Gone()  # type: ignore[assignment]
    (context.directory / backtraces.SERIAL_LOGS[0]).write_text(PANIC)
    backtraces.hypervisor(context)
    assert "build-id unknown" in written(context)


def test_a_hostile_log_is_escaped(context: CaseContext) -> None:
    evil = PANIC.replace("FATAL TRAP", "\x1b]0;x\x07FATAL <b>")
    assert xentrace.traces(evil)
    (context.directory / backtraces.XEN_LOG).write_text(evil)
    backtraces.hypervisor(context)
    assert "\x1b" not in written(context)
    assert "\x07" not in written(context)
