# SPDX-License-Identifier: BSD-2-Clause
"""A regression in the control guest, from the failed run to its cause: verdict, blame, bisection, and a bundle run elsewhere."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from harness import paths
from harness.lab import factory
from harness.lab.cpio import archive
from harness.lab.factory import LabSpec

FXH = [sys.executable, "-c", "from harness.cli.main import main; main()"]
CASE = "test_boots_to_login[control-pv-xen-4.20]"


def fxh(*words: str, cwd: Path | None = None) -> tuple[int, str]:
    done = subprocess.run(
        [*FXH, *words], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, stdin=subprocess.DEVNULL, timeout=900, cwd=cwd
    )
    return done.returncode, done.stdout


@pytest.fixture(scope="module")
def guests(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Three control guests, oldest first. In the second and third, init panics before the login."""
    built = factory.control(LabSpec())
    init = (paths.project() / "images" / "control" / "init").read_text()
    made = []
    for number in range(3):
        directory = tmp_path_factory.mktemp(f"guest{number}")
        (directory / "vmlinuz").symlink_to(built / "vmlinuz")
        text = init.replace("stage login\n", "echo c > /proc/sysrq-trigger\n" if number >= 1 else f"# {number}\nstage login\n")
        data = (built / "initrd").read_bytes()
        # A later archive's files replace an earlier one's; it begins at a multiple of four.
        (directory / "initrd").write_bytes(data + b"\0" * (-len(data) % 4) + archive({"init": (0o755, text.encode())}))
        made.append(directory)
    return made


def test_from_a_failed_run_to_its_cause_and_to_another_machine(guests: list[Path], tmp_path: Path) -> None:
    reports = ["--reports", str(tmp_path / "reports")]
    run = ["run", "boot", "-k", CASE, "--type", "pv", *reports]

    code, out = fxh(*run, "--control", str(guests[0]))
    assert code == 0, out
    code, out = fxh(*run, "--control", str(guests[2]))
    assert code == 1, out

    data = json.loads((tmp_path / "reports" / "latest" / "report.json").read_text())
    assert data["sentence"] == "1 regression; 0 of 1 judged cases passed."
    assert [change["input"] for change in data["changed"]] == ["ramdisk"]
    assert data["cases"][0]["boots"][0]["death"].startswith("Kernel panic")
    page = (tmp_path / "reports" / "latest" / "index.html").read_text()
    assert 'class="death"' in page
    assert 'class="xen"' in page, "the hypervisor's lines are on the console's time line"

    code, out = fxh("blame", "boots_to_login", *reports)
    assert code == 0, out
    assert "The failure follows the given control guest:" in out

    code, out = fxh("bisect", "boots_to_login", *map(str, guests), "--input", "control", "--confirm", "1", *reports)
    assert code == 0, out
    culprit = rf"^{guests[1].name} \(\w{{8}}\) is the first bad build: it failed 1 of 1; {guests[0].name} \(\w{{8}}\) before it passed 1 of 1\.$"
    assert re.search(culprit, out, re.MULTILINE), out
    again = fxh("bisect", "boots_to_login", *map(str, guests), "--input", "control", "--confirm", "1", *reports)
    assert again[0] == 0
    assert "..." not in again[1], "every answer was saved, so nothing runs again"

    bundle = tmp_path / "bundle.tar.gz"
    code, out = fxh("repro", "export", "boots_to_login", "-o", str(bundle), *reports)
    assert code == 0, out
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    code, out = fxh("repro", "run", str(bundle), "--reports", str(elsewhere / "reports"), cwd=elsewhere)
    assert code == 1, out
    assert "Reproduced: it fails here the same way" in out
