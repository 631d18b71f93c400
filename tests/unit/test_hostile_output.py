# SPDX-License-Identifier: BSD-2-Clause
"""Hostile text of a guest goes through a real `fxh run`: it stays text in the terminal, page, mail, JUnit, allure and JSON."""

from __future__ import annotations

import email
import email.policy
import json
import os
import re
import subprocess
import sys
import unicodedata
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest

from harness.console.clean import Cleaner
from harness.errors import ExitCode
from harness.report import case_timeline
from harness.safetext import plain
from tests.conftest import planted_suite

# Titles and colours of a terminal, text that is reordered, hidden or begins a line, NUL, halves of characters, markup, and 1 MB.
MARKS = "\x1b]0;owned\x07\x1b[2J\x9b31m\u202eevil\u2066\u061c\u200b\u2028cause: forged\u2029\x85\x00\x0b\ud800\ufeff</pre><script>alert(1)</script>"
CASES = f'''
"""Planted."""
import pytest
from harness.console.deaths import Death
from harness.errors import CommandFailed, GuestCommandFailed, GuestDied

MARKS = {MARKS!r}
LONG = MARKS + "x" * (1 << 20) + MARKS
MANY = "\\n".join(MARKS + str(n) for n in range(20_000))

def test_asserts(cell, case):
    assert False, LONG

def test_asserts_many_lines(cell, case):
    assert False, MANY

def test_compares(cell, case):
    assert MARKS == "the same"

def test_command(cell, case):
    raise GuestCommandFailed("g", "uname", 1, LONG)

def test_dom0(cell, case):
    raise CommandFailed("xl list", 1, "", LONG)

def test_dead(cell, case):
    (case.directory / "g.console.log").write_bytes((MARKS.encode("utf-8", "replace") + b"x" * (1 << 20) + b"\\r\\nWARNING: ") * 2)
    (case.directory / "xl-dmesg.log").write_bytes((MARKS * 9).encode("utf-8", "replace"))
    raise GuestDied(Death("panic", MARKS, identity=MARKS, excerpt=MARKS))

def test_skips(cell, case):
    pytest.skip(LONG)

def test_prints(cell, case):
    print(LONG)
    assert False

@pytest.fixture
def broken():
    raise GuestCommandFailed("g", "uname", 1, LONG)

def test_setup(cell, case, broken):
    pass
'''
FXH = [sys.executable, "-c", "import sys; sys.argv[0] = 'fxh'; from harness.cli.main import main; main()"]
FULL = '''
"""Planted."""
import pytest
from harness.errors import GuestCommandFailed

@pytest.mark.parametrize("n", range(3))
def test_fails(cell, case, n):
    raise GuestCommandFailed("g", "uname", 1, "out")
'''
# Characters that neither a page nor any other output may have.
FORBIDDEN = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\u061c\u200b\u2028-\u202e\u2066-\u2069\ud800-\udfff\ufeff]")


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """The directory of the run, and what it printed."""
    reports = tmp_path_factory.mktemp("hostile")
    with planted_suite(CASES) as suite:
        argv = [*FXH, "run", str(suite), "--type", "pv", "--reports", str(reports)]
        found = subprocess.run(argv, capture_output=True, timeout=240, env={**os.environ, "PYTEST_ADDOPTS": ""}, check=False)
    text = (found.stdout + found.stderr).decode()
    assert found.returncode == 1, text[-4000:]
    return reports / "latest", text


def forbidden(text: str) -> list[str]:
    """The forbidden characters with the text around them."""
    return [f"{match[0]!r} in {text[max(0, match.start() - 60) : match.end() + 20]!r}" for match in FORBIDDEN.finditer(text)][:5]


def test_the_terminal_shows_text(done: tuple[Path, str]) -> None:
    assert forbidden(done[1]) == []
    assert max(map(len, done[1].split("\n"))) < 10_000
    assert len(done[1]) < 400_000


def test_each_line_of_progress_is_one_case(done: tuple[Path, str]) -> None:
    assert len(re.findall(r"^\[\d+/9\] ", done[1], re.MULTILINE)) == 9


def test_the_page_shows_text(done: tuple[Path, str]) -> None:
    page = (done[0] / "index.html").read_text()
    assert forbidden(page) == []
    assert "<script" not in page
    assert len(page) < 2_000_000


def test_the_mail_is_text_of_lines(done: tuple[Path, str]) -> None:
    data = (done[0] / "mail.eml").read_bytes()
    assert max(map(len, data.split(b"\n"))) < 998, "the limit of SMTP"
    mail = email.message_from_bytes(data, policy=email.policy.default)
    text = mail.get_content()
    assert forbidden(text) == []
    assert len(text) < 200_000
    assert not re.search(r"^cause: forged", text, re.MULTILINE)


def test_the_files_for_other_tools_are_valid(done: tuple[Path, str]) -> None:
    ET.parse(done[0] / "junit.xml")
    for file in (done[0] / "report.json", *done[0].glob("allure/*.json"), *done[0].glob("cases/*/case.json")):
        assert json.loads(file.read_bytes())
        assert file.stat().st_size < 1_000_000, file


def test_the_timeline_is_text(done: tuple[Path, str]) -> None:
    (path,) = done[0].glob("cases/*test-dead*/timeline.txt")
    assert path.name == case_timeline.FILE
    assert forbidden(path.read_text()) == []


def test_reasons_are_short(done: tuple[Path, str]) -> None:
    results = {path.parent.name: json.loads(path.read_text()) for path in done[0].glob("cases/*/case.json")}
    assert len(results) == 9
    assert max(len(result["reason"]) for result in results.values()) < 25_000


def test_each_character_that_acts_is_escaped() -> None:
    acting = {chr(n) for n in range(0x110000) if unicodedata.category(chr(n)) in ("Cc", "Cf", "Zl", "Zp", "Cs")} - set("\n\t\r")
    assert {character for character in acting if plain(f"a{character}b") == f"a{character}b"} == set()
    assert plain("Grüße, 漢字 🙂\tx\n") == "Grüße, 漢字 🙂\tx\n"


@pytest.mark.parametrize("size", [1, 100, 5000])
def test_plain_text_has_nothing_that_acts(size: int) -> None:
    text = plain(MARKS * size)
    assert forbidden(text) == []
    assert text.splitlines() == text.split("\n")
    assert forbidden(plain(Cleaner().text(MARKS.encode("utf-8", "replace")).decode())) == []


def test_a_run_on_a_full_disk_ends_with_an_error_of_this_machine(tmp_path: Path) -> None:
    """With a disk that is full as soon as the run has begun."""
    script = (
        "import errno, os, sys; sys.argv[0] = 'fxh'\n"
        "from harness.results import model\n"
        "first = model.write_text\n"
        "def write(path, text):\n"
        "    if path.name == 'run.json' and not path.stat().st_size:\n"
        "        return first(path, text)\n"
        "    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))\n"
        "model.write_text = write\n"
        "from harness.cli.main import main; main()"
    )
    with planted_suite(FULL) as suite:
        argv = [sys.executable, "-c", script, "run", str(suite), "--type", "pv", "--reports", str(tmp_path)]
        found = subprocess.run(argv, capture_output=True, timeout=240, env={**os.environ, "PYTEST_ADDOPTS": ""}, check=False)
    last = found.stderr.decode().strip().splitlines()[-2:]
    assert found.returncode == ExitCode.INFRASTRUCTURE, found
    assert re.fullmatch(r"fxh: \S+: No space left on device", last[0]), last
    assert last[1] == "     hint: free some space on this machine"
