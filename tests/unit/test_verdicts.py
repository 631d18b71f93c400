# SPDX-License-Identifier: BSD-2-Clause
"""Verdicts for given histories, and invariants for any history."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import written
from hypothesis import given
from hypothesis import strategies as st

from harness.errors import BuildError
from harness.history import History
from harness.history.rows import observation
from harness.plugin import outcome
from harness.results.model import FAILED, HARNESS, INFRASTRUCTURE, KNOWN, PASSED, SKIPPED, KnownIssueMatch, RunResult
from harness.verdicts import judge as judging
from harness.verdicts import values
from harness.verdicts.drift import Drift, drifts
from harness.verdicts.run_verdicts import find_blockers, gone, judge_run
from harness.verdicts.values import BAD, KINDS, Branch, Inputs, LastGreen, NamedRun, Observation, Unreadable, Verdict

OUTCOMES = {"P": PASSED, "F": FAILED, "S": SKIPPED, "I": INFRASTRUCTURE, "H": HARNESS}
CASE, CELL = "boot/test_boot::test_boots_to_login", "freebsd-pvh-xen-4.20"
KERNELS = {letter: Inputs({"kernel": f"kernel.{letter} sha256:{letter * 64}", "xen": "4.20.1"}) for letter in "ABCD"}


def see(word: str, number: int, **more: object) -> Observation:
    """``"FB"`` is a failure with kernel B; ``"FBx"`` a failure with the death x."""
    seen = Observation(f"run-{number:03}", CASE, CELL, OUTCOMES[word[0]], word[2:], KERNELS[word[1]])
    return replace(seen, **more)  # type: ignore[arg-type]


def history(words: str) -> list[Observation]:
    return [see(word, number) for number, word in enumerate(words.split())]


def judge(now: Observation, past: Sequence[Observation], **more: Any) -> Verdict:
    """The verdict of harness.verdicts.judge, on observations that a database returned if the fixture ``kept`` names one."""
    if DATABASE:
        (history,) = DATABASE
        with history.writing() as connection:
            connection.exec_driver_sql("DELETE FROM runs")
        for seen in (*past, now):
            history.record(run_of(seen))
        read = [row.seen for row in history.results(before=history.number(now.run), last=200, measured=60)]
        assert read == list(past), "the database changes no observation"
        (result,) = run_of(now).cases
        assert observation(run_of(now), result) == now
        past = read
    return judging.judge(now, past, **more)


def run_of(seen: Observation) -> RunResult:
    """A run with this result alone."""
    outcome_, issue = seen.outcome, None
    if seen.known:
        bug, _, why = seen.known.partition(": ")
        issue = KnownIssueMatch(bug, why, seen.outcome == PASSED)
        outcome_ = FAILED if issue.gone else KNOWN
    word = next(word for word, one in {**OUTCOMES, "K": KNOWN}.items() if one == outcome_)
    result = written.case(
        word, seen.case.rpartition("::")[2], cell=seen.cell, identity=seen.identity, inputs=dict(seen.inputs.values),
        known_issue=issue, phase=seen.phase, death=None, reason="free text",
    )  # fmt: skip
    return written.run(0, result, run=seen.run, inputs={}, branch=seen.branch)


DATABASE: list[History] = []


@pytest.fixture(params=["memory", "sqlite", "postgresql"])
def kept(request: pytest.FixtureRequest, tmp_path: Path) -> Any:
    """Where the results before the judged one come from."""
    if request.param != "memory":
        where = tmp_path / "history.sqlite" if request.param == "sqlite" else request.getfixturevalue("postgres").new()
        DATABASE.append(History(where))
    yield
    DATABASE.clear()


TABLE = [
    # history, now, verdict, words of the reason
    ("", "PA", "new", "first result"),
    ("", "FA", "never passed", "failed in its first run"),
    ("IA SA HA", "PA", "new", "first result"),
    ("PA PA PA", "PA", "passed", "as in the 3 runs before"),
    ("PA PA PA", "PB", "passed", "as in the 3 runs"),
    ("PA PA PA", "FB", "regression", "passed in the last 3 runs, up to run-002; failed in the first run with these inputs; changed inputs: kernel kernel.A (AAAAAAAA) -> kernel.B (BBBBBBBB)"),
    ("PA PA IB SB", "FB", "regression", "passed in the last 2 runs, up to run-001"),
    ("PA FB", "FB", "still failing", "failing since run-001 (2 runs), last passed in run-000; inputs changed between these runs: kernel"),
    ("PA FB FC", "FD", "still failing", "failing since run-001 (3 runs)"),
    ("PA FB IB", "FC", "still failing", "since run-001 (2 runs)"),
    ("PA FBx", "FBy", "still failing", "different failure than before: y (was x)"),
    ("PA FB", "PC", "fixed", "failed in run-001; passes now; changed inputs: kernel"),
    ("PA FB FB FB", "PA", "fixed", "failed in the last 3 runs"),
    ("PA", "FA", "flaky", "failed 1 of 2 times with the same inputs, last passed in run-000"),
    ("PA FA PA", "FA", "flaky", "failed 2 of 4 times"),
    ("PA FA FA", "FA", "flaky", "3 times in a row now, so an unrecorded input may have changed"),
    ("FA", "PA", "flaky", "passed now, but failed 1 of 2 times with the same inputs, last in run-000"),
    ("PA FA PA FA PA", "FB", "regression", "it also failed 2 of 5 times with the baseline's inputs, so run it again"),
    ("FA", "FA", "never passed", "failed in all 2 runs since run-000"),
    ("FA FB", "FC", "never passed", "failed in all 3 runs since run-000"),
    ("FA FB", "PC", "fixed", "failed in the last 2 runs"),
    ("PA PA", "IB", "infrastructure", "not judged: infrastructure failed"),
    ("PA PA", "HB", "infrastructure", "a bug of the harness"),
    ("PA FB", "IB", "infrastructure", "the failure with the same inputs in run-001 (regression) still stands"),
    ("PA FB IB", "IB", "infrastructure", "still stands"),
    ("PA FB", "SB", "skipped", "not run"),
]  # fmt: skip


@pytest.mark.usefixtures("kept")
@pytest.mark.parametrize(("past", "now", "kind", "words"), TABLE)
def test_table(past: str, now: str, kind: str, words: str) -> None:
    verdict = judge(see(now, 99), history(past))
    assert (verdict.kind, words in verdict.reason) == (kind, True), verdict


@pytest.mark.usefixtures("kept")
def test_a_different_death_is_news() -> None:
    assert judge(see("FBy", 9), history("PA FBx FBx")).is_news
    assert not judge(see("FBx", 9), history("PA FBx FBx")).is_news
    assert judge(see("FBx", 9), history("PA FBx FBx")).since == "run-001"


@pytest.mark.usefixtures("kept")
def test_hidden_failure_still_stands() -> None:
    assert judge(see("IB", 9), history("PA FB")).standing == values.REGRESSION
    assert judge(see("IC", 9), history("PA FB")).standing == ""
    assert judge(see("IB", 9), history("PA FB PB")).standing == ""
    assert judge(see("FB", 9), history("PA FB"), blocked_by="other").standing == values.REGRESSION


@pytest.mark.usefixtures("kept")
def test_failed_build_is_no_result() -> None:
    """A build that fails within a case is infrastructure; so it is never flaky, and makes no pass before it so."""
    assert outcome.classify(BuildError("make ended with 2")).outcome == INFRASTRUCTURE
    assert judge(see("IA", 9), history("PA PA")).kind == values.INFRASTRUCTURE
    assert judge(see("PA", 9), history("PA IA")).kind == values.PASS


@pytest.mark.usefixtures("kept")
@pytest.mark.parametrize(
    ("past", "baseline", "kind", "words"),
    [
        ("PA FB", NamedRun("run-000"), "regression", "passed in run run-000"),
        ("PA FB", NamedRun("run-001"), "still failing", "failing since run-001"),
        ("PA IB", NamedRun("run-001"), "baseline untested", "run run-001 has no judged result of this case; the case last passed in run-000"),
        ("FA", NamedRun("run-007"), "baseline untested", "the case failed in all 1 other runs"),
        ("", NamedRun("run-007"), "baseline untested", "neither run run-007 nor another run has a judged result of this case"),
        ("PA PA", Branch("stable/14"), "baseline untested", "branch stable/14 has no judged result"),
    ],
)  # fmt: skip
def test_baselines(past: str, baseline: NamedRun | Branch, kind: str, words: str) -> None:
    verdict = judge(see("FC", 99), history(past), baseline=baseline)
    assert (verdict.kind, words in verdict.reason) == (kind, True), verdict


def test_without_the_history_there_is_no_comparison() -> None:
    unread = judge(see("FB", 9), [], baseline=Unreadable())
    assert (unread.kind, unread.reason) == (values.BASELINE_UNTESTED, "failed; not compared with the history, which cannot be read")
    assert judge(see("PB", 9), [], baseline=Unreadable()).kind == values.PASS


@pytest.mark.usefixtures("kept")
def test_branches_are_judged_separately() -> None:
    past = [replace(seen, branch="main") for seen in history("PA PB")]
    now = see("FC", 9, branch="stable/14")
    assert judge(now, past).kind == values.BASELINE_UNTESTED
    assert judge(now, past, baseline=Branch("main")).kind == values.REGRESSION
    # The same version passing on another branch excuses: it is the same version.
    assert judge(see("FB", 9, branch="stable/14"), past).kind == values.FLAKY
    assert judge(replace(now, outcome=PASSED), past).kind == values.NEW


@pytest.mark.usefixtures("kept")
def test_known_issues() -> None:
    past = history("PA PA")
    shown = judge(replace(see("FB", 9), known="bug 12345: x"), past)
    assert (shown.kind, shown.reference, shown.is_news) == (values.KNOWN, "bug 12345: x", False)
    gone_ = judge(replace(see("PB", 9), known="bug 12345: x"), past)
    assert (gone_.kind, gone_.is_news) == (values.KNOWN_GONE, True)
    # Once its entry is out, the failures it excused count as what they were.
    assert judge(see("PC", 9), [*past, replace(see("FB", 8), known="bug 12345: x")]).kind == values.FIXED
    past = [*history("PA"), replace(see("FB", 1), known="bug 1: x")]
    assert judge(see("FB", 9), past).kind == values.STILL_FAILING


def test_incidental_inputs_and_file_names_do_not_change_the_version() -> None:
    one = Inputs({"kernel": "a sha256:1", "machine": "Linux 6.1", "lab": "x"})
    two = Inputs({"kernel": "b sha256:1", "machine": "Linux 6.2", "lab": "y"})
    assert one.version == two.version
    assert one.changes(two) == ()
    assert one.changes(Inputs({"kernel": "a sha256:2"})) == ("kernel",)


def test_cases_blocked_by_an_earlier_death() -> None:
    def died(case: str, phase: str, identity: str = "x", cell: str = "c") -> Observation:
        return Observation("r", case, cell, FAILED, identity, phase=phase)

    run = [died("first", "setup"), died("boots", "call"), died("second", "setup"), died("other", "setup", "y"), died("more", "setup", "y"), died("first", "setup", cell="d")]  # fmt: skip
    assert find_blockers(run) == {("first", "c"): "boots", ("second", "c"): "boots", ("more", "c"): "other"}
    verdicts = judge_run(run, {})
    assert verdicts[("boots", "c")].kind == values.NEVER_PASSED
    assert verdicts[("second", "c")].kind == values.BLOCKED
    assert "the guest died during setup, as in boots" in verdicts[("second", "c")].reason
    assert verdicts[("other", "c")].kind == values.NEVER_PASSED
    assert verdicts[("first", "d")].kind == values.NEVER_PASSED


def test_cases_that_no_longer_run_are_named() -> None:
    past = history("PA PA")
    assert gone([], {(CASE, CELL): past}, "run-001") == ((CASE, CELL),)
    assert gone([], {(CASE, CELL): past}, "run-002") == ()
    assert gone([see("PA", 2)], {(CASE, CELL): past}, "run-001") == ()


@pytest.mark.usefixtures("kept")
@pytest.mark.parametrize("host", ["pv-lab", "freebsd-pvh-x"])
def test_a_host_name_is_not_taken_for_another_cell(host: str) -> None:
    past = [replace(seen, cell=f"freebsd-hvm-{host}") for seen in history("PA PA")]
    assert judge(see("FB", 9, cell=f"freebsd-hvm-{host}"), past).kind == values.REGRESSION
    assert judge(see("FB", 9, cell="freebsd-pvh-x"), past).kind == values.NEVER_PASSED


@pytest.mark.parametrize(
    ("metric", "more"),
    [("cycles per minute", True), ("reads per second", True), ("KiB/s", True), ("net throughput", True), ("error rate", True),
     ("seconds per cycle", False), ("iterations", False), ("a/size", False), ("stage login", False)],
)  # fmt: skip
def test_metrics_of_which_more_is_better(metric: str, more: bool) -> None:
    assert Drift("c", "x", metric, usual=10.0, now=5.0, runs=5).worse == more
    assert Drift("c", "x", metric, usual=10.0, now=20.0, runs=5).worse != more


def test_drift() -> None:
    past = [{"stage login": 10 + n % 3 * 0.5, "net throughput": 100.0} for n in range(8)]
    found = drifts("c", "x", {"stage login": 20.0, "net throughput": 50.0}, past)
    assert {(d.metric, d.worse) for d in found} == {("stage login", True), ("net throughput", True)}
    assert "20.00, usually 10.50 (median of 8 runs), factor 1.9" in found[1].words
    assert drifts("c", "x", {"stage login": 11.5}, past) == ()
    assert [d.worse for d in drifts("c", "x", {"stage login": 2.0}, past)] == [False]
    assert drifts("c", "x", {"stage login": 20.0}, past[:4]) == ()


# -- invariants -------------------------------------------------------------------------------------------------------

WORDS = st.builds(lambda o, k, i: o + k + i, st.sampled_from("PFSIH"), st.sampled_from("ABCD"), st.sampled_from(["", "x", "y"]))
PAST = st.lists(WORDS, max_size=12).map(lambda words: [see(word, number) for number, word in enumerate(words)])
NOW = WORDS.map(lambda word: see(word, 99))
BASELINES = st.one_of(st.just(LastGreen()), st.builds(NamedRun, st.sampled_from(["run-000", "run-003"])), st.just(Branch("")))
ALLOWED = {
    PASSED: {values.PASS, values.NEW, values.FIXED, values.FLAKY},
    FAILED: BAD | {values.FLAKY},
    SKIPPED: {values.SKIP},
    INFRASTRUCTURE: {values.INFRASTRUCTURE},
    HARNESS: {values.INFRASTRUCTURE},
}


@given(NOW, PAST, BASELINES)
def test_every_result_has_a_fitting_verdict_and_a_reason(now: Observation, past: list[Observation], baseline: object) -> None:
    verdict = judge(now, past, baseline=baseline)  # type: ignore[arg-type]
    assert verdict.kind in KINDS
    assert verdict.kind in ALLOWED[now.outcome]
    assert verdict.reason
    assert "\n" not in verdict.reason


@given(NOW, PAST, st.lists(WORDS, max_size=6), st.randoms())
def test_other_cells_and_cases_never_matter(now: Observation, past: list[Observation], extra: list[str], random: object) -> None:
    others = [see(word, n, cell="other") for n, word in enumerate(extra)]
    others += [see(word, n, case="other") for n, word in enumerate(extra)]
    mixed: list[Observation | None] = [None] * len(past) + list(others)  # type: ignore[assignment]
    random.shuffle(mixed)  # type: ignore[attr-defined]
    own = iter(past)
    assert judge(now, [seen if seen is not None else next(own) for seen in mixed]) == judge(now, past)


@given(NOW, PAST, st.integers(0, 12), st.sampled_from("SIH"))
def test_unjudged_results_change_no_verdict(now: Observation, past: list[Observation], where: int, word: str) -> None:
    more = [*past[:where], see(word + "A", 50), *past[where:]]
    assert judge(now, more) == judge(now, past)


@given(NOW, PAST)
def test_only_the_same_version_excuses_a_failure(now: Observation, past: list[Observation]) -> None:
    same = {seen.outcome for seen in past if seen.inputs.version == now.inputs.version and seen.judged}
    verdict = judge(now, past)
    if now.outcome == FAILED:
        assert (verdict.kind == values.FLAKY) == (PASSED in same)


@given(NOW, PAST)
def test_a_regression_has_a_pass_before_it_and_names_both_runs(now: Observation, past: list[Observation]) -> None:
    verdict = judge(now, past)
    passes = {seen.run for seen in past if seen.outcome == PASSED}
    judged = [seen for seen in past if seen.judged]
    if verdict.kind == values.REGRESSION:
        assert judged[-1].outcome == PASSED
        assert verdict.baseline in passes
        assert verdict.since == now.run
    if verdict.kind == values.STILL_FAILING:
        assert judged[-1].outcome == FAILED
        assert passes
    if verdict.kind == values.NEVER_PASSED:
        assert not passes
    if verdict.kind == values.FIXED:
        assert judged[-1].outcome == FAILED


@given(NOW, PAST)
def test_a_known_issue_excuses_only_its_own_case(now: Observation, past: list[Observation]) -> None:
    verdict = judge(replace(now, known="bug 1: x"), past)
    if now.outcome == FAILED:
        assert verdict.kind == values.KNOWN
    if now.outcome == PASSED:
        assert verdict.kind == values.KNOWN_GONE


@given(st.lists(st.tuples(WORDS, st.sampled_from(["a", "b", "c"]), st.sampled_from(["x", "y"])), max_size=8), st.randoms())
def test_blocked_cases_have_one_culprit_that_is_not_blocked(rows: list[tuple[str, str, str]], random: object) -> None:
    run = list({(case, cell): see(word, 1, case=case, cell=cell, phase=random.choice(["setup", "call"])) for word, case, cell in rows}.values())  # type: ignore[attr-defined] # fmt: skip
    found = find_blockers(run)
    for (case, cell), culprit in found.items():
        assert (culprit, cell) not in found
        assert culprit != case
