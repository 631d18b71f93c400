# SPDX-License-Identifier: BSD-2-Clause
"""Blame, bisection, scrubbing and bundles, without a lab. Hostile archives are refused."""

from __future__ import annotations

import io
import json
import math
import os
import subprocess
import sys
import tarfile
import time
from pathlib import Path
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st
from written import case, run, save

from harness.errors import InfrastructureError, UsageError
from harness.investigate import bisect_state, bundle
from harness.investigate.bisection import Culprit, Rule, State, Stuck, Try, next_step, tried
from harness.investigate.blame import ALL_GOOD, AS_IT_FAILED, CONTROL, Side, conclude, plan
from harness.investigate.builds import CommitBuilds, FileBuilds
from harness.investigate.rerun import checkout, selector
from harness.investigate.scrub import Scrubber
from harness.results.where import Where

P, F, LOST, S = "passed", "failed", "infrastructure", "skipped"
CELL, WHERE = "freebsd-pvh-xen-4.20", Where("freebsd", "pvh", "xen-4.20", "4.20")
BAD = Side({"kernel": "/k/B", "disk": "/d", "type": "pvh", "xen": "4.20"}, WHERE, "bbb")
GOOD = Side({"kernel": "/k/A", "disk": "/d0", "type": "pvh", "xen": "4.20"}, WHERE, "aaa")


# -- blame ------------------------------------------------------------------------------------------------------------


def test_plan_swaps_one_input_at_a_time() -> None:
    made = plan(BAD, GOOD, other_xens=["4.17"])
    assert [(trial.name, dict(trial.options), trial.cell, trial.harness) for trial in made.trials] == [
        (AS_IT_FAILED, {"kernel": "/k/B", "disk": "/d", "type": "pvh", "xen": "4.20"}, CELL, ""),
        (ALL_GOOD, {"kernel": "/k/A", "disk": "/d0", "type": "pvh", "xen": "4.20"}, CELL, "aaa"),
        ("disk", {"kernel": "/k/B", "disk": "/d0", "type": "pvh", "xen": "4.20"}, CELL, ""),
        ("kernel", {"kernel": "/k/A", "disk": "/d", "type": "pvh", "xen": "4.20"}, CELL, ""),
        ("harness", {"kernel": "/k/B", "disk": "/d", "type": "pvh", "xen": "4.20"}, CELL, "aaa"),
        ("another Xen (4.17)", {"kernel": "/k/B", "disk": "/d", "type": "pvh", "xen": "4.17"}, "freebsd-pvh-xen-4.17", ""),
        (CONTROL, {"type": "pvh", "xen": "4.20", "guest": "control"}, "control-pvh-xen-4.20", ""),
    ]


def test_plan_lists_inputs_that_cannot_be_swapped() -> None:
    good = Side(GOOD.options, WHERE, "bbb", {"kernel": "/k/A is gone"})
    made = plan(BAD, good)
    assert [trial.name for trial in made.trials] == [AS_IT_FAILED, ALL_GOOD, "disk", CONTROL]
    assert made.trials[1].options["kernel"] == "/k/B"
    assert made.unswappable == (("kernel", "/k/A is gone"),)
    # The same path with another content.
    assert plan(GOOD, Side(GOOD.options, WHERE, "aaa", {"kernel": "replaced"})).unswappable == (("kernel", "replaced"),)
    assert [trial.name for trial in plan(BAD, None).trials] == [AS_IT_FAILED, CONTROL]
    # An option that the passing run did not have is left out.
    assert "root" not in plan(Side(GOOD.options | {"root": "x"}, WHERE), GOOD).trials[2].options


TRIALS = plan(BAD, GOOD).trials


@pytest.mark.parametrize(
    ("outcomes", "follows", "words", "sure"),
    [
        ({AS_IT_FAILED: [F], ALL_GOOD: [P], "kernel": [P], "disk": [F], "harness": [F], CONTROL: [P]}, ("kernel",), "follows the kernel: with only that input taken from the passing run, the case passes. The control guest passes", True),
        ({AS_IT_FAILED: [F], ALL_GOOD: [P], "kernel": [F], "disk": [F], "harness": [P], CONTROL: [F]}, ("harness",), "The control guest also fails", True),
        ({AS_IT_FAILED: [P]}, (), "sporadic", True),
        ({AS_IT_FAILED: [F, P, F]}, (), "failed 2 of 3 times", False),
        ({AS_IT_FAILED: [LOST]}, (), "No result", False),
        ({}, (), "No result", False),
        ({AS_IT_FAILED: [F], ALL_GOOD: [F], "kernel": [F], "disk": [F], "harness": [F]}, (), "the cause is not recorded", True),
        ({AS_IT_FAILED: [F], ALL_GOOD: [P], "kernel": [F], "disk": [F], "harness": [F]}, ("disk", "kernel", "harness"), "any single one of disk, kernel, harness is not enough", False),
        ({AS_IT_FAILED: [F], ALL_GOOD: [P], "kernel": [P], "disk": [P], "harness": [F]}, ("disk", "kernel"), "needs all of them together", True),
        ({AS_IT_FAILED: [F], ALL_GOOD: [P], "kernel": [P], "disk": [LOST], "harness": [F]}, ("kernel",), "follows the kernel", False),
    ],
)  # fmt: skip
def test_conclusions(outcomes: dict[str, list[str]], follows: tuple[str, ...], words: str, sure: bool) -> None:
    found = conclude(TRIALS, outcomes)
    assert (found.follows, words in found.sentence, found.sure) == (follows, True, sure), found


def test_nothing_to_swap() -> None:
    assert "No input of a passing run" in conclude(plan(BAD, None).trials, {AS_IT_FAILED: [F], CONTROL: [P]}).sentence
    assert "Not swapped: disk (gone)." in conclude(TRIALS, {AS_IT_FAILED: [F], "kernel": [P]}, [("disk", "gone")]).sentence


@given(st.dictionaries(st.sampled_from([trial.name for trial in TRIALS]), st.lists(st.sampled_from([P, F, LOST]), max_size=3)))
def test_blame_follows_only_inputs_that_made_the_case_pass(outcomes: dict[str, list[str]]) -> None:
    found = conclude(TRIALS, outcomes)
    assert found.sentence
    if found.sure and found.follows:
        assert all(P in outcomes[name] and F not in outcomes[name] for name in found.follows)
        assert P not in outcomes[AS_IT_FAILED]


def test_other_cell_is_selected_by_its_name() -> None:
    assert selector(case(), "control-pvh-xen-4.20") == "test_boots[control-pvh-xen-4.20]"


# -- bisection --------------------------------------------------------------------------------------------------------


def play(count: int, truth: dict[int, object], rule: Rule, random: Random | None = None) -> tuple[State, Culprit | Stuck]:
    """Answer every try by ``truth``: an outcome, or the probability of a failure."""
    state = State(tuple(f"b{n}" for n in range(count)))
    for _ in range(500):
        step = next_step(state, rule)
        if not isinstance(step, Try):
            return state, step
        answer = truth[step.which]
        if isinstance(answer, float):
            assert random is not None
            answer = F if random.random() < answer else P
        state = state.answered(step.which, str(answer))
    raise AssertionError("the bisection does not end")


RULES = st.builds(Rule, st.just(1), st.integers(1, 3), st.integers(1, 3))


@given(st.integers(2, 200), st.data(), RULES)
def test_finds_the_culprit_in_few_builds(count: int, data: st.DataObject, rule: Rule) -> None:
    culprit = data.draw(st.integers(1, count - 1))
    state, found = play(count, {n: F if n >= culprit else P for n in range(count)}, rule)
    assert isinstance(found, Culprit)
    assert (found.which, found.before, found.between) == (culprit, culprit - 1, ())
    assert len(tried(state)) <= math.ceil(math.log2(count)) + 2
    assert state.count(found.which, F) >= rule.confirm
    assert state.count(found.before, P) >= rule.confirm


@given(st.integers(3, 60), st.data())
def test_broken_builds_are_skipped(count: int, data: st.DataObject) -> None:
    culprit = data.draw(st.integers(1, count - 1))
    broken = data.draw(st.sets(st.integers(1, count - 2)))
    _, found = play(count, {n: S if n in broken else F if n >= culprit else P for n in range(count)}, Rule())
    assert isinstance(found, Culprit)
    assert culprit in (*found.between, found.which)
    assert set(found.between) <= broken
    assert found.before < culprit <= found.which


@given(st.integers(2, 20), st.integers(0, 2**32), st.floats(0, 1), st.floats(0, 1))
def test_no_culprit_without_its_failures_and_passes(count: int, seed: int, low: float, high: float) -> None:
    rule = Rule(2, 3, 3)
    truth: dict[int, object] = {n: high if n >= count // 2 else low for n in range(count)}
    state, found = play(count, truth, rule, Random(seed))
    if isinstance(found, Culprit):
        assert state.count(found.which, F) >= 3
        assert state.count(found.before, P) >= 3


def test_ends_are_checked_first() -> None:
    assert "first build, b0, fails" in play(4, dict.fromkeys(range(4), F), Rule())[1].sentence
    assert "last build, b3, passes" in play(4, dict.fromkeys(range(4), P), Rule())[1].sentence
    assert "gives no result" in play(4, dict.fromkeys(range(4), LOST), Rule())[1].sentence
    assert "at least two" in play(1, {0: P}, Rule())[1].sentence


def test_infrastructure_is_tried_again_then_skipped() -> None:
    state, found = play(5, {0: P, 1: P, 2: LOST, 3: F, 4: F}, Rule(1, 1, 1))
    assert sum(which == 2 for which, _ in state.answers) == 3
    assert isinstance(found, Culprit)
    assert (found.before, found.between, found.which) == (1, (2,), 3)
    assert "b2 gave no result" in found.sentence


def test_n_of_m() -> None:
    state = State(("a", "b")).answered(1, F).answered(1, P)
    assert next_step(state, Rule(2, 3)) == Try(1, "checking that the last build is bad")
    assert next_step(state.answered(1, F), Rule(2, 3)) == Try(0, "checking that the first build is good")
    assert isinstance(next_step(state.answered(1, P), Rule(2, 3)), Stuck)


def test_a_bisection_resumes_and_a_damaged_file_is_refused(tmp_path: Path) -> None:
    saved = bisect_state.load(tmp_path, "c", "x", "kernel", ("a", "b"))
    saved.answered(1, F)
    saved.answered(0, P)
    assert bisect_state.load(tmp_path, "c", "x", "kernel", ("a", "b")).state.answers == ((1, F), (0, P))
    assert bisect_state.load(tmp_path, "c", "x", "kernel", ("a", "c")).state.answers == ()
    saved.path.write_text('{"answers": [[7, "passed"]]}')
    with pytest.raises(UsageError, match="unknown build"):
        bisect_state.load(tmp_path, "c", "x", "kernel", ("a", "b"))
    assert bisect_state.load(tmp_path, "c", "x", "kernel", ("a", "b"), restart=True).state.answers == ()


def test_the_name_of_a_file_build_has_its_content(tmp_path: Path) -> None:
    (tmp_path / "guest").mkdir()
    for name in ("k", "guest/vmlinuz", "guest/initrd"):
        (tmp_path / name).write_text(name)
    paths = [tmp_path / name for name in ("k", "guest", "none")]
    first = FileBuilds(paths)
    assert [name.partition(" ")[0] for name in first.names] == ["k", "guest", "none"]
    assert (first.names[2], first.option(2)) == ("none (missing)", None)
    assert first.option(0) == str(tmp_path / "k")
    (tmp_path / "guest" / "initrd").write_text("another")
    second = FileBuilds(paths)
    assert [a == b for a, b in zip(first.names, second.names, strict=True)] == [True, False, True]


def test_commits_are_built_once_and_broken_ones_are_reported(tmp_path: Path) -> None:
    source = tmp_path / "src"

    def git(*words: str) -> str:
        argv = ["git", "-C", str(source), "-c", "user.name=t", "-c", "user.email=t@example.org", *words]
        return subprocess.run(argv, check=True, capture_output=True, text=True).stdout.strip()

    source.mkdir()
    git("init", "-q")
    commits = []
    for n in range(5):
        (source / "file").write_text(f"{n}\n")
        git("add", "file")
        git("commit", "-qm", str(n))
        commits.append(git("rev-parse", "HEAD"))
    command = 'echo built >> "$FXH_OUT.log"; grep -q 2 file && exit 1; cp file "$FXH_OUT"'
    builds = CommitBuilds(source, commits[0], commits[4], command, tmp_path / "work")
    assert builds.names == tuple(commit[:12] for commit in commits)
    assert builds.option(2) is None
    out = builds.option(3)
    assert out is not None
    assert Path(out).read_text() == "3\n"
    assert builds.option(3) == out
    assert Path(out).with_name("part.log").read_text() == "built\n"
    builds.close()
    assert git("status", "--porcelain") == ""
    assert len(git("worktree", "list").splitlines()) == 1
    with pytest.raises(UsageError, match="no commits between"):
        CommitBuilds(source, commits[4], commits[0], command, tmp_path / "work")
    with pytest.raises(UsageError, match="rev-parse"):
        CommitBuilds(source, "nosuch", commits[0], command, tmp_path / "work")


# -- bundles ----------------------------------------------------------------------------------------------------------

SECRETS = """\
-----BEGIN OPENSSH PRIVATE KEY-----
b3BlbnNzaC1rZXktdjEAAAAA
-----END OPENSSH PRIVATE KEY-----
vncpasswd = 'hunter2'
"api_key": "hunter2", password=hunter2
Authorization: Bearer hunter2
https://me:hunter2@example.org/
ghp_hunter2hunter2hunter2
kernel /home/someone/src/kernel and /Users/someone/x, /tmp/pytest-of-someone/y, machine bigbox, store /srv/s/images/a
"""
KERNEL = b"\x7fELF kernel"
CLEAN = Scrubber({"/srv/s": "(store)"}, ("bigbox",))


def test_scrubbing() -> None:
    text = CLEAN(SECRETS)
    for word in ("hunter2", "b3BlbnNz", "someone/src", "/home", "/Users", "bigbox", "/srv/s"):
        assert word not in text
    assert "(store)/images/a" in text
    assert CLEAN(
        'panic: at the disco\nMounting from ufs:/dev/xbd0 failed with error 19.\n(XEN) d1v0\nkernel = "/var/lib/fxh/kernel"'
    ) == ('panic: at the disco\nMounting from ufs:/dev/xbd0 failed with error 19.\n(XEN) d1v0\nkernel = "/var/lib/fxh/kernel"')
    assert CLEAN(text) == text, "clean text does not change"


@pytest.mark.parametrize("piece", ["a.", "x", "password", "https://a", "-----BEGIN PRIVATE KEY-----", "token = ", "/home/", "a:"])
def test_scrubbing_takes_no_longer_for_hostile_text(piece: str) -> None:
    begun = time.process_time()
    CLEAN(piece * (1_000_000 // len(piece)))
    assert time.process_time() - begun < 5


@given(st.text())
def test_scrubbing_never_fails_and_settles(text: str) -> None:
    once = CLEAN(text)
    assert CLEAN(once) == CLEAN(CLEAN(once))


def exported(tmp_path: Path, disk: bytes = b"disk" * 100) -> tuple[Path, bundle.Bundle]:
    import hashlib

    secret = tmp_path / "private"
    secret.mkdir(exist_ok=True)
    (secret / "built").write_bytes(KERNEL)
    if not (secret / "kernel").exists():
        (secret / "kernel").symlink_to(secret / "built")
    (secret / "disk.img").write_bytes(disk)
    inputs = {"kernel": f"kernel sha256:{hashlib.sha256(KERNEL).hexdigest()}", "xvda": f"disk.img sha256:{hashlib.sha256(disk).hexdigest()}"}  # fmt: skip
    failed = case(
        "F", files=("g.console.log", "g.console.log.idx", "gone.log"), reason=SECRETS, title=f"in {secret}", inputs=inputs
    )
    options = {"kernel": str(secret / "kernel"), "disk": str(secret / "disk.img"), "type": "pvh", "xen-host": "root@bigbox"}
    done = run(1, failed, options=options, command=f"fxh run --kernel {secret}/kernel")
    path = save(tmp_path / "reports", done, {failed.directory: SECRETS.encode() + b"\xff\x00 console of bigbox\n"})
    target = tmp_path / "b.tar.gz"
    scrub = Scrubber({str(tmp_path): "(path)", "/srv/s": "(store)"}, ("bigbox",))
    return target, bundle.export(target, path / "cases" / failed.directory, done, failed, scrub)


def test_bundle_holds_no_secret_and_no_path_of_this_machine(tmp_path: Path) -> None:
    target, _ = exported(tmp_path)
    with tarfile.open(target) as archive:
        names = archive.getnames()
        assert names == ["bundle.json", "README.txt", "logs/g.console.log", "inputs/kernel", "inputs/disk.img"]
        for member in archive.getmembers():
            assert (member.uname, member.uid) == ("", 0)
            data = archive.extractfile(member).read().decode("utf-8", "replace")  # type: ignore[union-attr]
            for word in ("hunter2", "b3BlbnNz", "someone", "bigbox", str(tmp_path)):
                assert word not in data, member.name


def test_bundle_comes_back_as_options(tmp_path: Path) -> None:
    target, made = exported(tmp_path)
    read = bundle.read(target, tmp_path / "out")
    assert read == made
    assert (read.cell, read.result().key) == (CELL, "boot/test_boot::test_boots")
    options = bundle.options_for(read, tmp_path / "out", {})
    assert options == {"type": "pvh", "kernel": str(tmp_path / "out/inputs/kernel"), "disk": str(tmp_path / "out/inputs/disk.img")}


def test_large_inputs_are_only_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bundle, "_SMALL", 200)
    target, made = exported(tmp_path)
    assert [(item.option, bool(item.member)) for item in made.inputs] == [("kernel", True), ("disk", False)]
    read = bundle.read(target, tmp_path / "out")
    with pytest.raises(UsageError, match=r"needs disk\.img \(sha256") as caught:
        bundle.options_for(read, tmp_path / "out", {})
    assert "--disk FILE" in caught.value.hint
    other = tmp_path / "other.img"
    other.write_bytes(b"other")
    with pytest.raises(UsageError, match="is not the disk of the bundle"):
        bundle.options_for(read, tmp_path / "out", {"disk": other})
    assert bundle.options_for(read, tmp_path / "out", {"disk": other}, anyway=True)["disk"] == str(other)
    assert bundle.options_for(read, tmp_path / "out", {"disk": tmp_path / "private/disk.img"})


def test_a_kernel_dump_stays_out_of_a_bundle(tmp_path: Path) -> None:
    failed = case("F", files=("dump-g.txt", "g.vmcore.gz"))
    directory = tmp_path / "case"
    directory.mkdir()
    for name in failed.files:
        (directory / name).write_text("memory of the guest")
    bundle.export(tmp_path / "d.tar.gz", directory, run(1, failed), failed, CLEAN)
    with tarfile.open(tmp_path / "d.tar.gz") as archive:
        assert [name for name in archive.getnames() if name.startswith("logs/")] == ["logs/dump-g.txt"]


def test_inputs_that_changed_since_the_run_are_not_included(tmp_path: Path) -> None:
    exported(tmp_path)
    (tmp_path / "private" / "kernel").write_bytes(b"another")
    done = run(1, case("F", inputs={"kernel": f"kernel sha256:{'0' * 64}"}), options={"kernel": str(tmp_path / "private/kernel")})
    made = bundle.export(tmp_path / "c.tar.gz", tmp_path, done, done.cases[0], CLEAN)
    assert [(item.member, item.sha256) for item in made.inputs] == [("", "0" * 64)]


def pack(path: Path, files: dict[str, bytes], link: str = "") -> Path:
    with tarfile.open(path, "w:gz") as archive:
        for name, data in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
        if link:
            info = tarfile.TarInfo("inputs/kernel")
            info.type, info.linkname = tarfile.SYMTYPE, link
            archive.addfile(info)
    return path


def test_hostile_archives_are_refused(tmp_path: Path) -> None:
    target, made = exported(tmp_path)
    with tarfile.open(target) as archive:
        data = json.loads(archive.extractfile("bundle.json").read())  # type: ignore[union-attr]
    item = data["inputs"][0] | {"member": "../../outside"}
    (tmp_path / "text").write_text("no archive")
    hostile = {
        "text": tmp_path / "text",
        "empty": pack(tmp_path / "1.tgz", {}),
        "escape": pack(tmp_path / "2.tgz", {"../../evil": b"x", "bundle.json": json.dumps(data).encode()}),
        "absolute": pack(tmp_path / "3.tgz", {"bundle.json": json.dumps(data | {"inputs": [item]}).encode()}),
        "link": pack(tmp_path / "4.tgz", {"bundle.json": json.dumps(data).encode()}, "/etc/passwd"),
        "newer": pack(tmp_path / "5.tgz", {"bundle.json": json.dumps(data | {"schema": 99}).encode()}),
        "tampered": pack(tmp_path / "6.tgz", {"bundle.json": json.dumps(data).encode(), "inputs/kernel": b"evil"}),
        "outcome": pack(tmp_path / "8.tgz", {"bundle.json": json.dumps(data | {"outcome": "odd"}).encode()}),
        "more": pack(tmp_path / "7.tgz", {"bundle.json": json.dumps(data | {"command": "rm"}).encode()}),
    }
    for name, path in hostile.items():
        with pytest.raises(UsageError):
            bundle.read(path, tmp_path / "unpacked" / name)
    assert not (tmp_path / "evil").exists()
    cut = tmp_path / "cut.tgz"
    cut.write_bytes(target.read_bytes()[:-200])
    with pytest.raises(UsageError):
        bundle.read(cut, tmp_path / "unpacked" / "cut")
    assert made.options == {"type": "pvh"}


def test_a_bundle_cannot_pass_other_options(tmp_path: Path) -> None:
    exported(tmp_path)
    evil = bundle.Bundle(
        "c", "n", "s", "x", "c", F, "", "", "", "r", "h", {"reports": "/etc", "xen-host": "root@elsewhere", "type": "pvh"}
    )
    assert bundle.options_for(evil, tmp_path, {}) == {"type": "pvh"}


def test_another_checkout_of_the_harness_is_the_one_that_runs() -> None:
    """`rerun` relies on this: PYTHONPATH takes precedence over an installed copy of the harness."""
    project = Path(__file__).parents[2]
    if not (project / ".git").exists():
        pytest.skip("the harness is not in a git checkout")
    with checkout(project, "HEAD") as tree:
        code = "import harness, harness.paths; print(harness.__file__); print(harness.paths.project())"
        environment = os.environ | {"PYTHONPATH": str(tree), "FXH_PROJECT": str(tree)}
        out = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, cwd="/").stdout.split()
        assert out == [str(tree / "harness" / "__init__.py"), str(tree)]
    assert not tree.exists()
    with pytest.raises(InfrastructureError, match="no harness at"), checkout(project, "nosuch"):
        pass
