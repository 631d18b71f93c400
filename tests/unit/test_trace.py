# SPDX-License-Identifier: BSD-2-Clause
"""The action trace: what is written, what survives a kill, and what must never be in it."""

from __future__ import annotations

import json
import logging
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from harness import trace
from harness.deadline import ConditionNotMet, Deadline
from harness.errors import CommandFailed, DeadlineExpired
from harness.report.actions import describe
from harness.transport.local import LocalTransport


def test_a_command_is_an_event_with_status_and_size(tmp_path: Path) -> None:
    file = tmp_path / trace.FILE
    with trace.record(file):
        LocalTransport().run(["sh", "-c", "printf 12345; exit 3"], check=False)
    (event,) = trace.read(file)
    assert (event.kind, event.what, event.where) == ("command", "sh -c 'printf 12345; exit 3'", "localhost")
    assert (event.status, event.size) == ("exit 3", 5)
    assert event.ended
    assert abs(event.at - time.time()) < 60


def test_events_nest_and_an_error_is_the_status(tmp_path: Path) -> None:
    file = tmp_path / trace.FILE
    with trace.record(file), pytest.raises(CommandFailed), trace.step("boot", "boot to a login", "guest"):
        LocalTransport().run(["false"])
    boot, command = trace.read(file)
    assert command.parent == boot.number
    assert boot.status.startswith("CommandFailed: ")
    assert command.status == "exit 1"


def test_a_wait_says_what_it_saw_last(tmp_path: Path) -> None:
    seen = iter(["no domain", "paused", "paused"])

    def probe() -> None:
        raise ConditionNotMet(next(seen, "still paused"))

    with trace.record(tmp_path / "t"), pytest.raises(DeadlineExpired):
        Deadline(0.05).wait("the domain to run", probe, interval=0.01)
    (event,) = trace.read(tmp_path / "t")
    assert (event.kind, event.what, event.last) == ("wait", "the domain to run", "still paused")
    assert event.status.startswith("DeadlineExpired")


def test_a_condition_that_holds_at_once_is_no_event(tmp_path: Path) -> None:
    with trace.record(tmp_path / "t"):
        assert Deadline(1).wait("nothing", lambda: 7) == 7
    assert not (tmp_path / "t").exists(), "no event, no file"


def test_the_caller_is_the_line_of_the_case(tmp_path: Path) -> None:
    case = tmp_path / "suites" / "boot" / "test_x.py"
    case.parent.mkdir(parents=True)
    case.write_text("from harness import trace\n\ndef test_x():\n    with trace.step('xl', 'xl list'):\n        pass\n")
    space: dict[str, object] = {}
    exec(compile(case.read_text(), str(case), "exec"), space)
    with trace.record(tmp_path / "t"):
        space["test_x"]()  # type: ignore[operator]
    (event,) = trace.read(tmp_path / "t")
    assert event.caller == "suites/boot/test_x.py:4"


@pytest.mark.parametrize(
    "text",
    [
        "mount -o password=hunter2 x", "PGPASSWORD=hunter2 psql", "login --token hunter2", "x --smtp-password 'hunter2 hunter2'",
        "secret=hunter2", "password: hunter2", '{"password": "hunter2"}', "Authorization: Bearer hunter2", "https://user:hunter2@host/x",
        'password="my hunter2"', "PASSWORD='a hunter2' psql", "x --api-key hunter2", "https://hunter2@host/x",
    ],
)  # fmt: skip
def test_secrets_are_blanked_out(tmp_path: Path, text: str) -> None:
    with trace.record(tmp_path / "t"), pytest.raises(OSError, match="hunter2"), trace.step("guest", text):
        raise OSError(text)
    assert "hunter2" not in (tmp_path / "t").read_text()
    assert "***" in (tmp_path / "t").read_text()


def test_a_full_disk_loses_events_but_no_action(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "t").symlink_to("/dev/full")
    with trace.record(tmp_path / "t"):
        assert LocalTransport().run(["echo", "done"]).text == "done\n"
        with pytest.raises(CommandFailed):
            LocalTransport().run(["false"])
    assert caplog.text.count("no further events") == 1


@pytest.mark.parametrize(
    "argv",
    [
        ("x", "--password=my hunter2 word"),
        ("x", "--token", "hunter2"),
        ("sh", "-c", "PASSWORD='a hunter2' foo"),
        ("curl", "-H", "Authorization: Basic hunter2"),
    ],
)
def test_secrets_in_arguments_are_blanked_out(argv: tuple[str, ...]) -> None:
    assert "hunter2" not in trace.command(argv)
    assert "***" in trace.command(argv)


def test_the_log_has_no_secret_and_no_control_sequence(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(trace.OUTPUT, "fxh.trace"), trace.step("guest", "x") as step:
        step.status, step.last, step.output = "token=hunter2", "password=hunter2", b"\x1b]0;title\x07\x08 token=hunter2"
    assert "hunter2" not in caplog.text
    assert "\x1b" not in "".join(record.getMessage() for record in caplog.records)
    assert "<0x08>" in caplog.text


@pytest.mark.parametrize(
    "line",
    ['{"event":1e999,"kind":"x"}', '{"event":1,"kind":"x","in":NaN,"at":1e999}', '{"event":1,"kind":"\\ud800"}', "[" * 100_000],
)
def test_no_line_breaks_the_reader(tmp_path: Path, line: str) -> None:
    (tmp_path / "t").write_text(line + "\n")
    for event in trace.read(tmp_path / "t"):
        describe(event).encode()


def test_an_event_after_half_a_line_is_read(tmp_path: Path) -> None:
    (tmp_path / "t").write_text('{"event":1,"in":0,"at":1,"ki')
    with trace.record(tmp_path / "t"), trace.step("xl", "xl list"):
        pass
    assert [event.what for event in trace.read(tmp_path / "t")] == ["xl list"]


def test_a_program_that_travels_as_an_argument_is_shortened(tmp_path: Path) -> None:
    with trace.record(tmp_path / "t"):
        LocalTransport().run(["true", "x" * 5000])
    (event,) = trace.read(tmp_path / "t")
    assert event.what == f"true {'x' * 60}..."


def test_a_case_without_an_action_leaves_no_file(tmp_path: Path) -> None:
    with trace.record(tmp_path / "t"):
        with trace.step(trace.CASE, "skipped"):
            pass
        assert not (tmp_path / "t").exists()
        with trace.step(trace.CASE, "ran"), trace.step("xl", "xl list"):
            pass
    ran, listed = trace.read(tmp_path / "t")
    assert (ran.what, ran.ended, listed.parent) == ("ran", True, ran.number)


def test_a_case_that_runs_again_appends(tmp_path: Path) -> None:
    for word in ("first", "second"):
        with trace.record(tmp_path / "t"), trace.step("command", word):
            pass
    assert [(event.number, event.what) for event in trace.read(tmp_path / "t")] == [(1, "first"), (2, "second")]


def test_a_killed_harness_loses_nothing(tmp_path: Path) -> None:
    script = (
        "import sys, time; from pathlib import Path; from harness import trace\n"
        "with trace.record(Path(sys.argv[1])):\n"
        "    with trace.step('xl', 'xl list'): pass\n"
        "    with trace.step('wait', 'for ever'):\n"
        "        print('up', flush=True); time.sleep(600)\n"
    )
    with subprocess.Popen([sys.executable, "-c", script, str(tmp_path / "t")], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()
        process.send_signal(signal.SIGKILL)
    done, interrupted = trace.read(tmp_path / "t")
    assert done.ended
    assert not interrupted.ended
    assert "not done" in describe(interrupted)


@pytest.mark.parametrize("size", range(1, 60, 7))
def test_a_line_cut_short_costs_that_line_alone(tmp_path: Path, size: int) -> None:
    file = tmp_path / "t"
    with trace.record(file):
        for number in range(3):
            with trace.step("command", f"command {number}"):
                pass
    data = file.read_bytes()
    file.write_bytes(data[:-size])
    assert [event.what for event in trace.read(file)][:2] == ["command 0", "command 1"]


def test_lines_that_are_no_events_are_skipped(tmp_path: Path) -> None:
    (tmp_path / "t").write_bytes(
        b'\xff\xfe\n[]\n{"event": "x"}\n{"event": 1}\n7\n{"event": 2, "kind": "xl", "at": "soon", "in": null}\n'
    )
    (event,) = trace.read(tmp_path / "t")
    assert (event.number, event.kind, event.at) == (2, "xl", 0.0)


def test_verbose_shows_events_and_more_verbose_their_output(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.DEBUG, "fxh.trace"):
        LocalTransport().run(["echo", "hello"])
    assert "echo hello" in caplog.text
    caplog.clear()
    with caplog.at_level(trace.OUTPUT, "fxh.trace"):
        LocalTransport().run(["sh", "-c", "echo hel''lo"])
    assert [record.getMessage() for record in caplog.records][-1] == "hello\n"


def test_the_lines_follow_the_published_schema(tmp_path: Path) -> None:
    import jsonschema

    schema = json.loads((Path(__file__).parents[2] / "docs/schema/trace.json").read_text())
    with trace.record(tmp_path / "t"), trace.step("boot", "boot", "guest") as step:
        step.last = "login"
        LocalTransport().run(["false"], check=False)
    for line in (tmp_path / "t").read_text().splitlines():
        jsonschema.validate(json.loads(line), schema)
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate({"event": 1}, schema)
