# SPDX-License-Identifier: BSD-2-Clause
"""Reports of given runs: hostile guest output, long logs, missing files."""

from __future__ import annotations

import email
import email.policy
import json
import re
import xml.etree.ElementTree as ET
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import jsonschema
import pytest
from written import CELL, IDENTITY, case, run, save, save_schema1

from harness import report as reporting
from harness.errors import UsageError
from harness.history import FILE, History
from harness.oracles.finding import finding
from harness.report import console, html, junit, machine, mail
from harness.report.command import rerun_command
from harness.report.evidence import finding_rows
from harness.report.model import Report
from harness.results.model import Boot, CaseResult, DeathRecord, KnownIssueMatch, RunResult, Stamp, read_run
from harness.results.where import Where
from harness.safetext import plain
from harness.verdicts.values import NamedRun

HOSTILE = "</pre></span><script>alert(1)</script><img src=x onerror=alert(2)>\x1b[31m\x1b]0;title\x07\x00\u202e&amp;\r\nBcc: evil@example.org\r\n\r\nbody\n.\n"
SCHEMA = Path(__file__).parents[2] / "docs" / "report.schema.json"


def reported(reports: Path, *runs: RunResult, **consoles: bytes) -> tuple[Path, Report]:
    """The report of the last of ``runs``; the others are its history."""
    for done in runs:
        path = save(reports, done, consoles)
        made = reporting.publish(path, done)
    return path, made


class Strict(HTMLParser):
    """Fails on tags that are not closed in order. Collects tags and attributes that could run or fetch something."""

    VOID = frozenset({"meta", "br", "img", "line", "polyline", "circle", "link", "input"})

    def __init__(self, page: str) -> None:
        super().__init__()
        self.stack: list[str] = []
        self.tags: list[str] = []
        self.handlers: list[str] = []
        self.feed(page)
        assert self.stack == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.handlers += [name for name, _ in attrs if name.startswith("on") or name in ("src", "srcset", "action")]
        if tag not in self.VOID:
            self.stack.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if tag not in self.VOID:
            assert self.stack.pop() == tag, f"{self.getpos()}: </{tag}>"


# -- the page ---------------------------------------------------------------------------------------------------------


def test_a_suite_counts_every_outcome(tmp_path: Path) -> None:
    words = "PPKFIHS"
    path, made = reported(tmp_path, run(0, case()), run(1, *(case(word, f"test_{n}") for n, word in enumerate(words))))
    (row,) = made.matrix
    assert sum(count for count, _ in row.runs[-1].counts) == len(words)
    page = (path / "index.html").read_text()
    assert '<td>2 passed, 1 known, <b class="bad">1 failed</b>, ' in page
    assert "run-000: 1 passed" in page
    assert "run-001: 2 passed, 1 known, 1 failed, 1 infrastructure, 1 harness, 1 skipped" in page


def test_page_shows_a_regression_first(tmp_path: Path) -> None:
    past = [run(n, case(), case("P", "test_more")) for n in range(3)]
    path, made = reported(tmp_path, *past, run(3, case("F", kernel="B"), case("P", "test_more", kernel="B")))
    page = (path / "index.html").read_text()
    assert made.sentence == "1 regression; 1 of 2 judged cases passed."
    assert made.changed == (("kernel", "kernel.A (AAAAAAAA)", "kernel.B (BBBBBBBB)"),)
    Strict(page)
    body = page[page.index("<body>") :]
    assert (
        body.index("1 regression")
        < body.index("regression: <span>boots")
        < body.index("panic: at the disco")
        < body.index("Suites and cells</h2>")
    )
    assert body.count('<i class="sq f" title="run-003: 1 passed, 1 failed">F</i>') == 1
    assert "last run that passed (run-002)" in page


def test_page_escapes_guest_output(tmp_path: Path) -> None:
    died = Boot("g", (Stamp("kernel", 1.0),), 2.0, 100.0, "g.console.log", 0, "</pre>")
    done = case("F", reason=HOSTILE, identity=HOSTILE, excerpt=HOSTILE, title=HOSTILE, files=("g.console.log",), boots=(died,), inputs={"kernel": HOSTILE}, metrics={HOSTILE: 1.0}, directory="one")  # fmt: skip
    path, _ = reported(tmp_path, run(1, done, command=HOSTILE, branch=HOSTILE), one=HOSTILE.encode() * 50 + b"\xff\xfe\xc0")
    page = (path / "index.html").read_text()
    found = Strict(page)
    assert not {"script", "img", "iframe", "object", "link", "form"} & set(found.tags)
    assert found.handlers == []
    assert page.count("&lt;script&gt;") >= 5
    assert not set(page) & set("\x00\x07\x1b\u202e\r")
    assert "default-src 'none'" in page


def test_first_run_ever_and_empty_runs(tmp_path: Path) -> None:
    assert reported(tmp_path / "a", run(1, case(), case("P", "test_b")))[1].sentence == "All 2 judged cases passed."
    assert reported(tmp_path / "b", run(1))[1].sentence == "No case was judged."
    assert reported(tmp_path / "c", run(1, case("F")))[1].sentence == "1 case that never passed; 0 of 1 judged cases passed."
    assert reported(tmp_path / "d", run(1, case("S"), ended=""))[1].sentence == "No case was judged; the run did not finish."
    for name in "abcd":
        Strict((tmp_path / name / "runs" / "run-001" / "index.html").read_text())


def test_sentence_counts_unjudged_cases_separately(tmp_path: Path) -> None:
    past = run(1, *[case("P", f"test_{n}") for n in "abcd"])
    second = run(2, case("F", "test_a", kernel="B"), case("I", "test_b", kernel="B"), case("H", "test_c", kernel="B"), case("P", "test_d", kernel="B"))  # fmt: skip
    _, made = reported(tmp_path, past, second)
    assert (
        made.sentence
        == "1 regression; 1 of 2 judged cases passed; 2 cases could not be judged (infrastructure, 1 of them because of a bug of the harness)."
    )
    third = run(3, *[case("I", f"test_{n}", kernel="B") for n in "abcd"])
    _, made = reported(tmp_path, third)
    assert (
        made.sentence
        == "No case was judged; 4 cases could not be judged (infrastructure); 1 earlier failure with the same inputs still stands."
    )


def test_an_unjudged_case_is_not_green_and_has_a_reason(tmp_path: Path) -> None:
    why = "vif7.0 is gone\nBcc: evil@example.org"
    path, made = reported(tmp_path, run(1, case(), case("I", "test_b", reason=why)))
    assert '<h1 class="lost">' in (path / "index.html").read_text()
    assert "test_b in freebsd-pvh-xen-4.20: vif7.0 is gone Bcc:" in " ".join(mail.body(made).split())
    path, _ = reported(tmp_path, run(2, case(), case("P", "test_b")))
    assert '<h1 class="good">' in (path / "index.html").read_text()


def test_known_issues_count_as_failures_in_the_history(tmp_path: Path) -> None:
    known = case("K", kernel="B", issue="bug 1: it halts")
    passes = case("F", kernel="C", issue="bug 1: it halts")
    _, made = reported(tmp_path, run(1, case()), run(2, known))
    assert made.sentence == "1 known issue; 0 of 1 judged cases passed."
    assert made.cases[0].verdict.reason == "known: bug 1: it halts"
    _, made = reported(tmp_path, run(3, passes))
    assert [(item.verdict.kind, item.verdict.is_news) for item in made.cases] == [("known issue gone", True)]
    _, made = reported(tmp_path, run(4, case(kernel="D")))
    assert made.cases[0].verdict.kind == "passed"


def test_named_baseline(tmp_path: Path) -> None:
    path, _ = reported(tmp_path, run(1, case()), run(2, case("F", kernel="B")), run(3, case("F", kernel="C")))
    made = reporting.build_report(path, run(3, case("F", kernel="C")), baseline=NamedRun("run-001"))
    assert [item.verdict.kind for item in made.cases] == ["regression"]
    assert reporting.build_report(path, run(3, case("F", kernel="C"))).cases[0].verdict.kind == "still failing"


def test_without_a_history_only_the_comparison_is_missing(tmp_path: Path) -> None:
    (tmp_path / FILE).mkdir(parents=True)
    path, made = reported(tmp_path, run(1, case("F")))
    assert made.note.startswith("No comparison with earlier runs (infrastructure, not a failure of the product): ")
    assert made.note in (path / "index.html").read_text()
    assert [item.verdict.kind for item in made.cases] == ["baseline untested"]


def test_a_report_that_cannot_be_written_stops_no_other(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    done = run(1, case())
    path = save(tmp_path, done)
    (path / "mail.eml").mkdir()
    reporting.publish(path, done)
    assert "mail.eml: Is a directory" in caplog.text
    assert (path / "index.html").is_file()
    assert (path / "report.json").is_file()


def test_page_without_the_files_of_a_case(tmp_path: Path) -> None:
    done = case("F", files=("g.console.log", "g.cfg", "xl-dmesg.log"), boots=(Boot("g", (), 1.0, 5.0, "g.console.log"),))
    path, _ = reported(tmp_path, run(1, done))
    assert "panic: at the disco" in (path / "index.html").read_text()


def test_many_consoles_do_not_exceed_the_page_limit(tmp_path: Path) -> None:
    noise = b"x" * 79 + b"\n"
    cases = [case("F", f"test_{n}", directory=f"d{n}", files=("g.console.log",)) for n in range(300)]
    done = run(1, *cases)
    path = save(tmp_path, done, {f"d{n}": noise * 600 for n in range(300)})
    reporting.publish(path, done)
    page = (path / "index.html").read_text()
    assert len(page) < 10_000_000
    assert "because this page would be too long" in page
    Strict(page)


def test_gone_cases_are_named(tmp_path: Path) -> None:
    path, made = reported(tmp_path, run(1, case(), case("P", "test_old")), run(2, case()))
    assert made.gone == (("boot/test_boot::test_old", CELL),)
    assert "boot/test_boot::test_old in" in (path / "index.html").read_text()


def test_trend_and_drift(tmp_path: Path) -> None:
    def boots(seconds: float) -> tuple[Boot, ...]:
        return (Boot("d", (Stamp("kernel", 1.0), Stamp("login", seconds))),)

    past = [run(n, case(boots=boots(4.0 + n * 0.02))) for n in range(8)]
    path, made = reported(tmp_path, *past, run(8, case(boots=boots(9.0))))
    assert [drift.metric for drift in made.cases[0].drifts] == ["stage login"]
    assert made.sentence == "The one judged case passed; 1 metric drifted for the worse."
    page = (path / "index.html").read_text()
    assert page.index('<span class="tag odd">drift</span>') < page.index('id="matrix"')
    assert "drift: stage login: 9.00, usually 4.07 (median of 8 runs), factor 2.2" in page
    assert page.count("<svg") == 1
    assert 'aria-label="stage login over 9 runs' in page
    Strict(page)


# -- consoles ---------------------------------------------------------------------------------------------------------


def test_console_lines_have_times_and_the_death_is_marked(tmp_path: Path) -> None:
    log = tmp_path / "g.console.log"
    log.write_bytes(b"one\r\ntwo\r\npanic: no init\r\ncpuid = 0\r\n")
    Path(f"{log}.idx").write_text("0 100.5\n10 101.25\n")
    boot = Boot("g", (), 2.0, 100.0, log.name, 0, "no init")
    found = console.lines(log, boot)
    assert [(line.at, line.text, line.kind) for line in found] == [
        (0.5, "one", "guest"),
        (0.5, "two", "guest"),
        (1.25, "panic: no init", "death"),
        (1.25, "cpuid = 0", "guest"),
    ]


def test_hang_is_marked_at_the_last_line_before_it(tmp_path: Path) -> None:
    log = tmp_path / "g.console.log"
    log.write_bytes(b"one\ntwo\n")
    boot = Boot("g", (), 60.0, 100.0, log.name, 0, "no progress after stage init for 60 s")
    assert [line.kind for line in console.lines(log, boot)] == ["guest", "death"]


def test_hypervisor_log_is_merged_by_time(tmp_path: Path) -> None:
    guest = [console.Line(1.0, "a"), console.Line(None, "b"), console.Line(3.0, "c")]
    text = "(XEN) old line\n(XEN) [   10.000000] early\n(XEN) [   52.000000] d1v0 bad\n(XEN) [   60.000000] 't' pressed"
    xen = console.xen_lines(text, clock=1010.0, unpaused=1000.0)
    assert [(line.at, line.text) for line in xen] == [(-40.0, "early"), (2.0, "d1v0 bad"), (10.0, "'t' pressed")]
    assert [line.text for line in console.merge(guest, xen)] == ["a", "b", "d1v0 bad", "c", "'t' pressed"]
    assert console.xen_lines(text, None, 1000.0) == []


def test_only_the_end_of_a_huge_log_is_read(tmp_path: Path) -> None:
    log = tmp_path / "g.console.log"
    with log.open("wb") as file:
        file.truncate(500_000_000)
        file.seek(0, 2)
        file.write(b"\nthe end\n")
    found = console.lines(log, None)
    assert found[-1].text == "the end"
    assert sum(len(line.text) for line in found) < console.TAIL * 8


# -- mail -------------------------------------------------------------------------------------------------------------


def test_mail_is_plain_text_of_72_columns_with_the_verdict_first(tmp_path: Path) -> None:
    trace = (
        "panic: page fault\n" + "vm_fault_trap() at vm_fault_trap+0x151/frame 0xfffffe0045071d60\n" * 3 + "y" * 200 + "\n\ttab é"
    )
    _, made = reported(
        tmp_path,
        run(1, case()),
        run(2, case("F", kernel="B", excerpt=trace), case("I", "test_b"), options={"kernel": "/a/very/long/path/" + "k" * 60}),
    )
    raw = mail.compose(made, to="freebsd-xen@example.org").as_bytes()
    message = email.message_from_bytes(raw, policy=email.policy.default)
    assert message.get_content_type() == "text/plain"
    text = message.get_content()
    lines = text.splitlines()
    assert lines[0].startswith("1 regression;")
    assert [line for line in lines if len(line) > 72 and "kkkk" not in line] == []
    assert "| vm_fault_trap() at vm_fault_trap+0x151/frame 0xfffffe0045071d60" in text
    assert "y" * 69 + "\\" in text
    for words in ("guest type  PVH", "kernel.B sha256", "4.20.1", "Run it again:", "--kernel"):
        assert words in text
    assert message["Subject"].startswith(f"[fxh] {CELL}: 1 regression")
    assert b"Content-Transfer-Encoding: 8bit" in raw


def test_the_mail_of_one_case_tells_what_happens_why_and_with_which_inputs(tmp_path: Path) -> None:
    reason = "test:      a VLAN on the interface\nobserved:  the VLAN has MTU 1496\nexpected:  1500\nreference: if_vlan.c"
    known = replace(
        case("K", kernel="B", reason=f"known issue: FreeBSD bug 12345\n{reason}", files=("g.cfg",)),
        title="A VLAN has the MTU of its interface.",
        inputs={"kernel": "kernel (FreeBSD 15.1-RELEASE XENA, 1501000) sha256:" + "0" * 64, "xen": "4.20.1"},
        known_issue=KnownIssueMatch("FreeBSD bug 12345", "netfront lacks IFCAP_VLAN_MTU"),
    )
    done = run(1, known, case("F", "test_other"))
    path = save(tmp_path, done)
    (path / "cases" / known.directory / "g.cfg").write_text('type = "pvh"\n')
    made = reporting.publish(path, done)
    item = next(item for item in made.cases if item.result.key == known.key)
    message = mail.compose_case(made, item, to="a@example.org", scrub=lambda text: text.replace("1496", "(scrubbed)"))
    assert message["Subject"] == "FreeBSD 15.1-RELEASE XENA, PVH, Xen 4.20.1: the VLAN has MTU (scrubbed)"
    assert message["Auto-Submitted"] is None  # a person sends it
    text = message.get_content()
    assert text.startswith("Correct behaviour: A VLAN has the MTU of its interface.")
    for words in (
        "Cause: netfront lacks IFCAP_VLAN_MTU", "Bug: FreeBSD bug 12345", "observed   the VLAN has MTU (scrubbed)",
        '| type = "pvh"', "Run it again:", "freebsd-xen-harness ran", "--- inputs",
    ):  # fmt: skip
        assert words in text
    assert "test_other" not in text
    assert [line for line in text.splitlines() if len(line) > 72 and not line.startswith(" ")] == []


def test_mail_has_the_facts_of_a_bug_report(tmp_path: Path) -> None:
    """The lines around a death in a long excerpt, and the domain's configuration."""
    excerpt = "\n".join([*(f"before {n}" for n in range(30)), "panic: no init", *(f"frame{n}()" for n in range(30))])
    boot = Boot("g", (Stamp("kernel", 1.0),), 2.0, 100.0, "g.console.log", 0, "no init")
    done = run(1, case("F", excerpt=excerpt, boots=(boot,), files=("a.cfg", "g.cfg")))
    path = save(tmp_path, done)
    (path / "cases" / done.cases[0].directory / "g.cfg").write_text('type = "pvh"\nmemory = 512\n')
    text = mail.body(reporting.build_report(path, done))
    assert "| before 29\n| panic: no init\n| frame0()" in text
    assert "before 27" not in text
    assert 'Domain configuration:\n| type = "pvh"\n| memory = 512' in text
    assert "Stages reached: kernel 1.0 s; died after 2.0 s." in text


@pytest.mark.parametrize(
    ("where", "shown"),
    [
        (Where("control", "pv", "freebsd-pvh-x"), "guest type  PV"),
        (Where("freebsd", "pvh", "pv-lab"), "guest type  PVH"),
        (Where("freebsd", "hvm", "pv-lab", firmware="uefi"), "guest type  HVM (UEFI)"),
        (Where("freebsd", "pvshim", "my-uefi-box"), "guest type  PV shim"),
    ],
)
def test_a_host_name_is_not_taken_for_a_guest_type(tmp_path: Path, where: Where, shown: str) -> None:
    _, made = reported(
        tmp_path, run(1, case("F", cell=str(where), where=where, nodeid=f"suites/boot/test_boot.py::test_boots[{where}]"))
    )
    assert f"  {shown}\n" in mail.body(made)
    page = (tmp_path / "runs" / "run-001" / "index.html").read_text()
    assert f"{where}" in page
    Strict(page)
    data = json.loads((tmp_path / "runs" / "run-001" / "report.json").read_text())
    assert data["cases"][0]["where"]["host"] == where.host
    assert made.cases[0].verdict.kind == "never passed"


@pytest.mark.parametrize(
    ("where", "command"),
    [
        (Where("control", "pv", "freebsd-pvh-x"), "--guest control --type pv --xen 4.17,4.20"),
        (Where("freebsd", "pvh", "pv-lab"), "--guest freebsd --type pvh --xen 4.17,4.20"),
        (Where("freebsd", "pvh", "xen-4.17", "4.17"), "--guest freebsd --type pvh --xen 4.17"),
    ],
)
def test_a_host_name_is_not_taken_for_an_option(where: Where, command: str) -> None:
    options = {"guest": "control,freebsd", "type": "pv,pvh", "xen": "4.17,4.20"}
    done = run(1, case(cell=str(where), where=where), options=options)
    assert rerun_command(done, done.cases[0]).endswith(command)


FINDING = finding(
    test="the guest halts after 'poweroff' is written to control/shutdown",
    observed=["no shutdown within 60 s", "the console shows </pre><b>nothing</b>\x1b[31m"],
    expected="the domain shuts down with reason poweroff",
    reference="sys/dev/xen/control/control.c, xctrl_poweroff()",
)


def test_a_finding_is_shown_by_its_parts(tmp_path: Path) -> None:
    path, made = reported(tmp_path, run(1, case("F", identity="", death=None, excerpt="", reason=f"{FINDING}\nassert 1 == 2")))
    text = mail.body(made)
    assert "  test       the guest halts after 'poweroff' is written to\n             control/shutdown\n" in text
    assert "  observed   no shutdown within 60 s\n  observed   the console shows </pre>" in text
    assert "  expected   the domain shuts down with reason poweroff\n" in text
    assert "  reference  sys/dev/xen/control/control.c, xctrl_poweroff()\n" in text
    assert "assert 1 == 2" not in text, "pytest repeats the observations"
    page = (path / "index.html").read_text()
    Strict(page)
    assert '<th scope="row">expected</th><td>the domain shuts down with reason poweroff</td>' in page
    assert "&lt;/pre&gt;&lt;b&gt;nothing&lt;/b&gt;" in page
    assert "\x1b" not in page + text


def test_the_cause_of_a_long_finding_is_shown(tmp_path: Path) -> None:
    """Page and mail cut a finding of many lines, but not its cause. The counters come from a guest."""
    long = finding(test="x", observed=[f"observation {n} {'y' * 90}" for n in range(40)], expected="z", reference="r")
    cause = [
        "cause:     dom0 discarded 12 packets for a wrong checksum",
        *(f"counted:   guest {n}: </td><script>\x1b[31m" for n in range(30)),
    ]
    path, made = reported(tmp_path, run(1, case("F", identity="", death=None, excerpt="", reason="\n".join([long, *cause]))))
    text = mail.body(made)
    assert "observation 10" in text
    assert "observation 11" not in text
    assert "cause dom0 discarded 12 packets for a wrong checksum counted guest 0: </td>" in " ".join(text.split())
    assert "guest 8:" in text
    assert "guest 9:" not in text
    page = (path / "index.html").read_text()
    Strict(page)
    first = page[: page.index("observation 39")]
    assert '<th scope="row">cause</th><td>dom0 discarded 12 packets for a wrong checksum</td>' in first, "on the first screen"
    assert "<script>\x1b" not in page
    assert "\x1b" not in page + text


def test_an_assertion_that_pytest_indented_is_a_finding() -> None:
    text = FINDING.replace("\n", "\n  ") + "\nassert not ['x']"
    assert [label for label, _ in finding_rows(text)] == ["test", "observed", "observed", "expected", "reference", ""]


def test_a_mail_does_not_repeat_a_finding_as_an_expression(tmp_path: Path) -> None:
    text = FINDING.replace("\n", "\n  ") + "\nassert not ['x']\n +  where ['x'] = f()\ncause:     dom0 lost it"
    done = run(1, case("F", directory="one", reason=text), case("F", case="two", reason="assert 1 == 2"))
    body = mail.body(reporting.build_report(save(tmp_path, done, {}), done))
    assert "assert not" not in body
    assert "+  where" not in body
    assert "cause      dom0 lost it" in body
    assert "| assert 1 == 2" in body, "the only text of an assertion without a finding"


def test_actions_and_backtrace_are_in_mail_and_page(tmp_path: Path) -> None:
    """The actions are sorted into the console by time."""
    boot = Boot("g", (Stamp("kernel", 1.0),), 2.0, 100.0, "g.console.log", 0, "at the disco")
    done = run(1, case("F", directory="one", boots=(boot,), files=("g.console.log", "trace.jsonl")))
    path = save(tmp_path, done, {"one": b"before\nafter\n"})
    (path / "cases/one/g.console.log.idx").write_text("0 100.5\n7 103.0\n")
    begin = {"event": 1, "in": 0, "at": 1000.0, "clock": 102.0, "kind": "xl", "what": "xl mem-set 3 </pre>\x1b[31m160m"}
    (path / "cases/one/trace.jsonl").write_text(json.dumps(begin) + "\n" + json.dumps({"event": 1, "seconds": 0.4}) + "\n")
    (path / "cases/one/backtrace.txt").write_text("#5  xbd_resume (sys/dev/xen/blkfront/blkfront.c:1020)\n#6 </pre>\x1b[31m\n")
    made = reporting.build_report(path, done)
    assert "Backtrace:\n| #5  xbd_resume (sys/dev/xen/blkfront/blkfront.c:1020)\n| #6 </pre>" in mail.body(made)
    assert "Last actions before the failure:\n|      0.00 s  xl mem-set 3 </pre>" in mail.body(made)
    page = html.render(path, made)
    Strict(page)
    assert page.index(">before</span>") < page.index("# xl mem-set 3 &lt;/pre&gt;") < page.index(">after</span>")
    assert "last actions before the failure</summary>" in page
    assert "#6 &lt;/pre&gt;" in page
    assert "\x1b" not in page


def test_a_different_failure_has_a_plain_sentence(tmp_path: Path) -> None:
    other = "0badc0de panic: page fault @ xbd_resume"
    _, made = reported(tmp_path, run(1, case()), run(2, case("F", kernel="B")), run(3, case("F", kernel="B", identity=other)))
    assert made.cases[0].verdict.reason.endswith(f"; different failure than before: {other} (was {IDENTITY})")
    assert made.sentence == "1 still failing, 1 with a different failure than before; 0 of 1 judged cases passed."
    assert json.loads(machine.render(made))["cases"][0]["verdict"]["otherwise"] is True


@pytest.mark.parametrize(("kind", "title"), [("refused", "Xen's tools:"), ("panic", "Console:")])
def test_an_excerpt_names_its_source(tmp_path: Path, kind: str, title: str) -> None:
    death = DeathRecord(kind, f"0badcafe {kind}: no memory @ -", "no memory")
    _, made = reported(tmp_path, run(1, case("F", identity=death.identity, death=death)))
    assert f"\n{title}\n| panic: at the disco" in mail.body(made)


def test_guest_output_adds_no_header_and_no_line_to_the_mail(tmp_path: Path) -> None:
    done = case("F", cell="x\r\nBcc: evil@example.org", reason=HOSTILE, identity=HOSTILE, excerpt=HOSTILE, title=HOSTILE)
    _, made = reported(tmp_path, run(1, done, command=HOSTILE, run="run-001", branch=HOSTILE))
    raw = mail.compose(made, to="a@example.org").as_bytes()
    message = email.message_from_bytes(raw, policy=email.policy.default)
    assert set(message.keys()) == {"Subject", "From", "To", "Date", "Message-ID", "Auto-Submitted", "X-Fxh-Run", "Content-Type", "Content-Transfer-Encoding", "MIME-Version"}  # fmt: skip
    assert message.defects == []
    text = message.get_content()
    assert not any(line.startswith(("Bcc:", ".")) for line in text.splitlines())
    assert "\x1b" not in text


@pytest.mark.parametrize("address", ["no address", "a@b\r\nBcc: c@d", "", "a@b c@d"])
def test_wrong_addresses_are_refused(tmp_path: Path, address: str) -> None:
    _, made = reported(tmp_path, run(1, case()))
    if not address:
        assert "To" not in mail.compose(made, to=address)
        return
    with pytest.raises(UsageError, match="is not a mail address"):
        mail.compose(made, to=address)


# -- JSON, JUnit, allure ----------------------------------------------------------------------------------------------


def test_json_conforms_to_its_schema(tmp_path: Path) -> None:
    schema = json.loads(SCHEMA.read_text())
    jsonschema.Draft202012Validator.check_schema(schema)
    validator = jsonschema.Draft202012Validator(schema)
    past = [run(n, case(), case("P", "test_old")) for n in range(6)]
    slow = case("P", "test_b", boots=(Boot("d", (Stamp("login", 1.0),)),))
    path, made = reported(tmp_path, *past, run(7, case("F", kernel="B", reason=HOSTILE), slow, case("S", "test_c")))
    data = json.loads((path / "report.json").read_text())
    assert list(validator.iter_errors(data)) == []
    assert data["cases"][0]["verdict"]["kind"] == "regression"
    for broken in (data | {"schema": 2}, data | {"sentence": 1}, {k: v for k, v in data.items() if k != "cases"}):
        assert not validator.is_valid(broken)
    data["cases"][0]["verdict"]["kind"] = "perhaps"
    assert not validator.is_valid(data)
    assert machine.render(made) == (path / "report.json").read_text()


JUNIT = '<testsuites><testsuite name="pytest"><testcase classname="suites.boot.test_boot" name="test_boots[{cell}]"><properties><property name="other" value="1"/></properties></testcase><testcase classname="x" name="y"/></testsuite></testsuites>'


def test_junit_gets_inputs_and_verdicts_once(tmp_path: Path) -> None:
    done = run(1, case("F", identity=HOSTILE, inputs={"kernel": "k\x00\x0b\ufffe", "xen": "4.20.1"}))
    path = save(tmp_path, done)
    (path / "junit.xml").write_text(JUNIT.format(cell=CELL))
    made = reporting.publish(path, done)
    junit.enrich(path / "junit.xml", made)
    root = ET.parse(path / "junit.xml").getroot()
    suite = [(p.get("name"), p.get("value")) for p in root.findall("testsuite/properties/property")]
    first = [(p.get("name"), p.get("value")) for p in root.findall("testsuite/testcase[1]/properties/property")]
    assert ("fxh.xen", "4.20.1") in suite
    assert [value for name, value in first if name == "fxh.verdict"] == ["never passed"]
    assert ("other", "1") in first
    assert ("fxh.cell", CELL) in first
    assert root.find("testsuite/testcase[2]/properties") is None


def test_broken_junit_file_is_unchanged(tmp_path: Path) -> None:
    done = run(1, case())
    path = save(tmp_path, done)
    (path / "junit.xml").write_text("<testsuites>")
    reporting.publish(path, done)
    assert (path / "junit.xml").read_text() == "<testsuites>"


def test_allure_gets_categories_environment_and_history(tmp_path: Path) -> None:
    reported(tmp_path, run(1, case()), run(2, case("F", kernel="B")))
    done = run(3, case("F", kernel="B"))
    path = save(tmp_path, done)
    allure = path / "allure"
    allure.mkdir()
    result = {"fullName": "suites.boot.test_boot#test_boots", "name": f"test_boots[{CELL}]", "status": "failed", "historyId": "h1", "statusDetails": {"message": "[failed] x"}, "parameters": [{"name": "cell", "value": CELL}]}  # fmt: skip
    (allure / "1-result.json").write_text(json.dumps(result))
    (allure / "2-result.json").write_text("{")
    for _ in range(2):
        reporting.publish(path, done)
    judged = json.loads((allure / "1-result.json").read_text())
    assert judged["statusDetails"]["message"].startswith("[still failing] failing since run-002")
    assert judged["labels"] == [{"name": "verdict", "value": "still failing"}]
    assert judged["parameters"] == result["parameters"]
    categories = json.loads((allure / "categories.json").read_text())
    hits = [c["name"] for c in categories if re.match(c["messageRegex"], judged["statusDetails"]["message"])]
    assert hits == ["Still failing"]
    assert "kernel=kernel.B sha256" in (allure / "environment.properties").read_text()
    history = json.loads((allure / "history" / "history.json").read_text())
    assert [item["status"] for item in history[judged["historyId"]]["items"]] == ["failed", "passed"]
    trend = json.loads((allure / "history" / "history-trend.json").read_text())
    assert [(point["reportName"], point["data"]["failed"]) for point in trend] == [("run-002", 1), ("run-001", 0)]


KNOWN_ISSUE = "known issue: bug 1: it is so"


@pytest.mark.parametrize(
    ("before", "now", "status", "message", "category"),
    [
        ("", case("K", issue="bug 1: it is so"), "skipped", f"XFAIL {KNOWN_ISSUE}\n\nAssertionError", "Known issue"),
        ("P", case("F", kernel="B"), "failed", "AssertionError: x", "Regression: it passed before"),
        ("P", case("F", kernel="B"), "broken", "RuntimeError: x", "Regression: it passed before"),
        ("", case("F"), "failed", "[failed] x", "Never passed"),
        ("F", case(), "passed", "", "Flaky: the same inputs pass and fail"),
        ("P", case("I"), "broken", "[infrastructure] the host is lost", "Infrastructure: no result for the product"),
        ("P", case("H"), "broken", "TypeError: x", "Infrastructure: no result for the product"),
        ("", case("S"), "skipped", "Skipped: of its own will", ""),
        ("", case("S"), "skipped", f"Skipped: {KNOWN_ISSUE}", ""),
        ("P", case(), "passed", "", ""),
        ("", case("F", issue="bug 1: it is so"), "passed", "", "Known issue gone: remove its entry"),
    ],
)
def test_allure_puts_each_result_into_its_category(
    before: str, now: CaseResult, status: str, message: str, category: str, tmp_path: Path
) -> None:
    if before:
        reported(tmp_path, run(1, case(before)))
    done = run(2, now)
    path = save(tmp_path, done)
    (path / "allure").mkdir()
    result = {"fullName": "suites.boot.test_boot#test_boots", "name": f"test_boots[{CELL}]", "status": status}
    if message:
        result["statusDetails"] = {"message": message, "trace": "..."}  # type: ignore[assignment]
    (path / "allure" / "1-result.json").write_text(json.dumps(result))
    for _ in range(2):
        reporting.publish(path, done)
    judged = json.loads((path / "allure" / "1-result.json").read_text())
    said = (judged.get("statusDetails") or {}).get("message", "")
    categories = json.loads((path / "allure" / "categories.json").read_text())
    hits = [c["name"] for c in categories if judged["status"] in c["matchedStatuses"] and re.fullmatch(c["messageRegex"], said)]
    assert hits == ([category] if category else []), said
    assert plain(message) in said, "pytest's message stays"
    assert said.count("\n[") == message.startswith("["), "a second call adds no second verdict"


def test_rerun_command_names_case_cell_and_inputs() -> None:
    options = {"guest": "control,freebsd", "type": "pv,pvh", "xen": "4.17,4.20", "kernel": "/a b/kernel"}
    done = run(1, case(), options=options)
    assert (
        rerun_command(done, done.cases[0])
        == f"fxh run boot -k 'test_boots[{CELL}]' --guest freebsd --kernel '/a b/kernel' --type pvh --xen 4.20"
    )


def test_history_number_of_a_run_in_the_past(tmp_path: Path) -> None:
    """An old run is judged by earlier runs only."""
    path, _ = reported(tmp_path, run(1, case()), run(2, case("F", kernel="B")))
    reported(tmp_path, run(3, case("F", kernel="B")))
    made = reporting.build_report(path, run(2, case("F", kernel="B")))
    assert made.cases[0].verdict.kind == "regression"
    assert len(History(tmp_path / FILE).runs()) == 3
    assert html.render(path, made).count("run-003") == 0


# -- schema 1 ---------------------------------------------------------------------------------------------------------


def test_runs_of_schema_1_are_reported_as_those_of_schema_2(tmp_path: Path) -> None:
    """Known issues, deaths and cells of an older harness give the same verdicts, mail and page."""
    options = {"guest": "control,freebsd", "type": "pv,pvh", "xen": "4.17,4.20"}
    runs = [
        run(1, case(), case("P", "test_more"), case("K", "test_known", issue="bug 1: it halts")),
        run(2, case("F", kernel="B"), case("I", "test_more"), case("F", "test_known", issue="bug 1: it halts"), options=options),
    ]
    for done in runs:
        for write, reports in ((save_schema1, tmp_path / "1"), (save, tmp_path / "2")):
            path = write(reports, done)
            reporting.publish(path, read_run(path))
    texts = []
    for name in "12":
        path = tmp_path / name / "runs" / "run-002"
        made = reporting.build_report(path, read_run(path))
        texts.append((mail.body(made), [(item.result.key, item.verdict, item.rerun) for item in made.cases]))
    # Only the text of the known issue differs.
    assert (
        texts[0][0].replace("this passes, and is listed as a known issue,", "the case passes, but is listed as a known issue:")
        == texts[1][0]
    )
    assert texts[0][1] == texts[1][1]
    kinds = {key.partition("::")[2]: verdict.kind for key, verdict, _ in texts[0][1]}
    assert kinds == {"test_boots": "regression", "test_more": "infrastructure", "test_known": "known issue gone"}
    assert "--guest freebsd --type pvh --xen 4.20" in texts[0][1][0][2]
